"""The part of an OCI image configuration that says how a program is started."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torpor.errors import UsageError
from torpor.images.errors import BadArchiveError

MAX_CONFIG_BYTES = 4 << 20
_MAIN_PORT = "MainPort"
_EXPOSE = re.compile(r"(?:\A|#\(nop\)\s+)EXPOSE\s(.*)", re.DOTALL)
_EXPOSED = re.compile(r"\b(\d{1,5})(?:/(tcp|udp))?\b")


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """A HEALTHCHECK; times in nanoseconds, 0 for the default, as docker writes them."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a program of this image is started when nothing else is asked for."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    main_port: int = 0
    """The TCP port that its newest EXPOSE names, where that is one; 0 where it is not known."""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    healthcheck: Healthcheck | None = None
    volumes: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()
    """Instructions for a Dockerfile that builds on this image."""

    def to_record(self) -> dict[str, Any]:
        """As `to_oci`, for the store's own records, which have no history."""
        return self.to_oci() | ({_MAIN_PORT: self.main_port} if self.main_port else {})

    @property
    def tcp_ports(self) -> tuple[int, ...]:
        """Those of the exposed ports, which are named as `8080` or `8080/tcp`; ascending."""
        parts = [port.partition("/") for port in self.exposed_ports]
        tcp = (number for number, _, kind in parts if kind in ("", "tcp"))
        return tuple(sorted(int(number) for number in tcp if number.isdigit()))

    def argv(self, arguments: Sequence[str] = ()) -> list[str]:
        """The command line: the entrypoint, then `arguments` or else the image's command."""
        return [*self.entrypoint, *(arguments or self.cmd)]

    def to_oci(self) -> dict[str, Any]:
        """The same in the words of the OCI image specification; what is unset is left out."""
        health: dict[str, Any] = {}
        if self.healthcheck is not None:
            check = self.healthcheck
            health = _without_empty(
                {
                    "Test": list(check.test),
                    "Interval": check.interval_ns,
                    "Timeout": check.timeout_ns,
                    "StartPeriod": check.start_period_ns,
                    "Retries": check.retries,
                }
            )
        return _without_empty(
            {
                "Entrypoint": list(self.entrypoint),
                "Cmd": list(self.cmd),
                "Env": list(self.env),
                "WorkingDir": "" if self.workdir == "/" else self.workdir,
                "User": self.user,
                "ExposedPorts": {port: {} for port in self.exposed_ports},
                "StopSignal": self.stop_signal,
                "Labels": dict(sorted(self.labels.items())),
                "Healthcheck": health,
                "Volumes": {path: {} for path in self.volumes},
                "Shell": list(self.shell),
                "OnBuild": list(self.on_build),
            }
        )


def the_port(config: ImageConfig, image: str, remedy: str) -> int:
    """The TCP port of an image: what its newest EXPOSE names, or all there is. Raises UsageError.

    A Dockerfile's own EXPOSE only adds to those of its base, so an image often has several.
    """
    match (config.main_port,) if config.main_port else config.tcp_ports:
        case (port,):
            return port
        case ():
            raise UsageError(f"{image} exposes no TCP port: {remedy}")
        case several:
            raise UsageError(f"{image} exposes ports {', '.join(map(str, several))}: {remedy}")


def parse_config(raw: object, origin: str) -> ImageConfig:
    """Reads the `config` object of an OCI or docker image configuration.

    Unknown members are passed over, wrong types are refused with the member's name.
    """
    reader = _Members(raw if raw is not None else {}, origin)
    health = reader.mapping("Healthcheck")
    healthcheck = None
    if health:
        member = _Members(health, f"{origin} Healthcheck")
        healthcheck = Healthcheck(
            test=member.strings("Test"),
            interval_ns=member.integer("Interval"),
            timeout_ns=member.integer("Timeout"),
            start_period_ns=member.integer("StartPeriod"),
            retries=member.integer("Retries"),
        )
    labels = reader.mapping("Labels")
    if not all(isinstance(value, str) for value in labels.values()):
        raise BadArchiveError(f"{origin}: Labels must map strings to strings")
    env = reader.strings("Env")
    for variable in env:
        if variable.find("=") < 1:
            raise BadArchiveError(f"{origin}: Env entry {variable!r} is not NAME=VALUE")
    return ImageConfig(
        entrypoint=reader.strings("Entrypoint"),
        cmd=reader.strings("Cmd"),
        env=env,
        workdir=reader.string("WorkingDir") or "/",
        user=reader.string("User"),
        exposed_ports=tuple(sorted(reader.mapping("ExposedPorts"))),
        stop_signal=reader.string("StopSignal"),
        labels=dict(sorted(labels.items())),
        healthcheck=healthcheck,
        volumes=tuple(sorted(reader.mapping("Volumes"))),
        shell=reader.strings("Shell"),
        on_build=reader.strings("OnBuild"),
    )


def parse_record(raw: object, origin: str) -> ImageConfig:
    """Reads what `to_record` made."""
    config = parse_config(raw, origin)
    return replace(config, main_port=_Members(raw, origin).integer(_MAIN_PORT))


def with_history(config: ImageConfig, history: object) -> ImageConfig:
    """With what the `history` of an image configuration tells of its ports.

    `created_by` is free text: tools write `EXPOSE 80`, `/bin/sh -c #(nop) EXPOSE 80` and
    `EXPOSE map[80/tcp:{}]`. What is not understood is passed over.
    """
    for entry in reversed(history if isinstance(history, list) else []):
        text = entry.get("created_by") if isinstance(entry, dict) else None
        found = _EXPOSE.search(text) if isinstance(text, str) else None
        if found is not None:
            ports = [int(number) for number, kind in _EXPOSED.findall(found[1]) if kind != "udp"]
            known = [port for port in ports if port in config.tcp_ports]
            return replace(config, main_port=known[0]) if len(known) == 1 else config
    return config


def expose_history(config: ImageConfig) -> dict[str, str]:
    """The member of a history entry that tells the same to whoever reads it."""
    return {"created_by": f"EXPOSE {config.main_port}/tcp"} if config.main_port else {}


def _without_empty(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value}


def _is_text(value: object) -> bool:
    """Whether `value` can be an argument or variable of a program (JSON has lone surrogates)."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Members:
    """Typed access to a JSON object; null and absent are the same."""

    def __init__(self, raw: object, origin: str) -> None:
        if not isinstance(raw, dict):
            raise BadArchiveError(f"{origin}: must be a JSON object")
        self._raw = raw
        self._origin = origin

    def _wrong(self, name: str, wanted: str) -> BadArchiveError:
        return BadArchiveError(f"{self._origin}: {name} must be {wanted}")

    def string(self, name: str) -> str:
        value = self._raw.get(name) or ""
        if not _is_text(value):
            raise self._wrong(name, "a string without NUL")
        return str(value)

    def integer(self, name: str) -> int:
        value = self._raw.get(name) or 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, "an integer")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._raw.get(name) or []
        if not isinstance(value, list) or not all(map(_is_text, value)):
            raise self._wrong(name, "a list of strings without NUL")
        return tuple(value)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._raw.get(name) or {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value
