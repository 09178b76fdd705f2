"""What a density run remembers across interruptions: its settings, and everything it measured.

`run.json` is written once. `journal.jsonl` has a line for each thing measured, appended as it
happens; a last line that was cut off by the end of the process is left out.
"""

import os
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from torpor.errors import TorporError

T = TypeVar("T")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may not change between the parts of one run."""

    name: str
    """Beginning of all instances' names."""
    app: str
    image: str
    port: int
    memory_mb: int
    cooldown_ms: int
    began_s: float
    """time.time() at its start; all times below count from it."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Where the creation phase was."""

    at_ms: int
    started: int
    """Instances that were started and have answered, in all."""
    loading_s: float
    """Time spent in the creation phase, samples and audits excluded, in all."""
    loaded: int
    """Instances that were started in that time, in all."""


class Killed(msgspec.Struct, frozen=True, tag="killed"):
    """A process was killed."""

    at_ms: int
    what: str
    """`torpord`, `proxy` or `vm`."""


class Spent(msgspec.Struct, frozen=True, tag="spent"):
    """Processor time of a part of the creation phase."""

    instances: int
    seconds: dict[str, float]
    """By part of the server, and of the client."""


class Baseline(msgspec.Struct, frozen=True, tag="baseline"):
    """The server before the run: image and template are there, and hardly any instances."""

    instances: int
    disk_bytes: int


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What was measured with `instances` in standby. Sizes of processes are 0 where unknown."""

    instances: int
    start_ms: list[float]
    wake_ms: list[float]
    disk_bytes: int
    host_used_bytes: int
    torpord_rss_bytes: int
    proxy_rss_bytes: int
    vms: int
    vms_private_bytes: int
    rest_s: float
    rest_cpu_s: float
    store: dict[str, int]


class Final(msgspec.Struct, frozen=True, tag="final"):
    """What the end of a run found."""

    audited: int
    audit_s: float
    answers: int
    fell_back: int
    lost: int
    refused: int
    wrong: list[str]
    busy_instances: int
    busy_disk_bytes: int
    restart_s: float | None


Line = Progress | Killed | Spent | Baseline | Step | Final

_lines: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class Journal:
    """The journal of a run, and its settings."""

    def __init__(self, directory: Path) -> None:
        self._settings_path = directory / "run.json"
        self._path = directory / "journal.jsonl"
        self.lines: list[Line] = []
        self._read()

    def settings(self) -> Settings | None:
        """Those of an earlier part of the run, if there was one."""
        try:
            return msgspec.json.decode(self._settings_path.read_bytes(), type=Settings)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise TorporError(f"{self._settings_path}: {error}: use another --out") from error

    def begin(self, settings: Settings) -> None:
        """Notes the settings of a new run."""
        temporary = self._settings_path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(settings))
        temporary.replace(self._settings_path)

    def add(self, line: Line) -> None:
        """Notes something measured."""
        self.lines.append(line)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")

    def of(self, kind: type[T]) -> list[T]:
        """All lines of one kind, oldest first."""
        return [line for line in self.lines if isinstance(line, kind)]

    def last(self, kind: type[T]) -> T | None:
        """The newest line of one kind."""
        found = self.of(kind)
        return found[-1] if found else None

    def _read(self) -> None:
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        try:
            self.lines = [_lines.decode(line) for line in whole.splitlines()]
        except msgspec.MsgspecError as error:
            raise TorporError(f"{self._path}: {error}: use another --out") from error


def new_name() -> str:
    """A beginning of names that no other run has."""
    return f"d{int(time.time()):x}"
