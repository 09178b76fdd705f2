"""Reading Dockerfiles, as far as images and lines are concerned.

buildah does the building. Here a Dockerfile is split into instructions with their line numbers (so
that an error can be shown where it is), and its base images are found (so that they can come from
the store). `translate` writes the copy that buildah gets.

Reference: the Dockerfile reference of docker, "Format", "Parser directives", "Here-Documents".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torpor.images.errors import BuildError

MAX_DOCKERFILE_BYTES = 1 << 20
INSTRUCTIONS = frozenset(
    (
        *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK"),
        *("LABEL", "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME"),
        "WORKDIR",
    )
)
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*\Z")
HEREDOC = re.compile(r"(?<![<\w\\])(\d*)<<(-?)(['\"]?)([A-Za-z_][\w.]*)\3(?=\s|\Z)")
"""The mark of a here-document in RUN, COPY and ADD: descriptor, `-`, quote and name."""
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?([-+])([^{}]*))?\})")
_FLAG = re.compile(r"(--[a-z-]+)(?:=(\S+))?\s*")
_PLATFORM = {
    f"{side}{name}": value
    for side in ("BUILD", "TARGET")
    for name, value in (("PLATFORM", "linux/amd64"), ("OS", "linux"), ("ARCH", "amd64"))
}
"""What FROM knows without an ARG."""


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document: its name, its text and whether variables in it are left alone."""

    name: str
    text: str
    literal: bool


@dataclass(slots=True)
class Instruction:
    """One instruction. `line` is where it begins and `last_line` where it ends, from 1."""

    keyword: str
    rest: str
    line: int
    last_line: int
    heredocs: list[Heredoc] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and what follows it."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed Dockerfile. `head` is what stands before the first FROM."""

    path: Path
    lines: tuple[str, ...]
    escape: str
    head: tuple[Instruction, ...]
    stages: tuple[Stage, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    """What `head` sets, and the platform."""
    build_args: Mapping[str, str] = field(default_factory=dict)

    def excerpt(self, first: int, last: int) -> str:
        """The lines around an instruction, the instruction's own marked, for an error message."""
        shown = range(max(1, first - 2), min(len(self.lines), last + 1) + 1)
        return "\n".join(
            f"{'>' if first <= number <= last else ' '}{number:5} | {self.lines[number - 1]}"
            for number in shown
        )


def parse_dockerfile(text: str, path: Path, build_args: Mapping[str, str]) -> Dockerfile:
    """Splits a Dockerfile into stages. Raises BuildError pointing at the line that is wrong."""
    # Not splitlines(), which knows more ends of lines than a Dockerfile does.
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    escape = _escape(lines)
    instructions = _Splitter(lines, escape, path).split()
    head: list[Instruction] = []
    stages: list[Stage] = []
    arguments = dict(_PLATFORM)
    for instruction in instructions:
        if instruction.keyword == "FROM":
            base, name = _parse_from(instruction, arguments, path, lines)
            stages.append(Stage(base, name, (instruction,)))
        elif stages:
            stage = stages[-1]
            stages[-1] = Stage(stage.base, stage.name, (*stage.instructions, instruction))
        elif instruction.keyword == "ARG":
            head.append(instruction)
            for name, default in _arguments(instruction.rest, arguments):
                value = build_args.get(name, default)
                if value is not None:
                    arguments[name] = value
        else:
            raise error_at(path, lines, instruction, f"{instruction.keyword} before the first FROM")
    if not stages:
        raise BuildError(f"{path}: no FROM: a Dockerfile begins with the image it builds on")
    return Dockerfile(path, tuple(lines), escape, tuple(head), tuple(stages), arguments, build_args)


def base_images(dockerfile: Dockerfile, target: str = "") -> list[str]:
    """The images that the stages up to `target` need from elsewhere, each once, in order."""
    images: dict[str, None] = {}
    names: set[str] = set()
    for number, stage in enumerate(stages_to(dockerfile, target)):
        for used in (stage.base, *_copied_from(stage)):
            if (
                used.lower() not in names
                and used != "scratch"
                and not is_earlier_stage(used, number)
            ):
                images[used] = None
        if stage.name:
            names.add(stage.name)
    return list(images)


def stages_to(dockerfile: Dockerfile, target: str) -> tuple[Stage, ...]:
    if not target:
        return dockerfile.stages
    for number, stage in enumerate(dockerfile.stages, 1):
        if stage.name == target.lower() or target == str(number - 1):
            return dockerfile.stages[:number]
    names = ", ".join(stage.name for stage in dockerfile.stages if stage.name) or "none"
    raise BuildError(f"{dockerfile.path}: no stage {target!r}; its named stages: {names}")


def last_and_its_bases(dockerfile: Dockerfile, target: str) -> list[Stage]:
    """The stage that is wanted, the one that it builds on, and so on to one of another image."""
    stages = stages_to(dockerfile, target)
    found = [stages[-1]]
    for number in reversed(range(len(stages) - 1)):
        stage, base = stages[number], found[-1].base
        if base == str(number) or (stage.name and base.lower() == stage.name):
            found.append(stage)
    return found


def is_earlier_stage(name: str, before: int) -> bool:
    """Whether `name` is the number of a stage before that one."""
    return name.isdigit() and int(name) < before


def _copied_from(stage: Stage) -> list[str]:
    found = []
    for instruction in stage.instructions:
        if instruction.keyword in ("COPY", "ADD", "RUN"):
            for flag, value in split_flags(instruction.rest)[0]:
                if flag == "--from":
                    found.append(value)
                elif flag == "--mount":
                    options = dict(part.partition("=")[::2] for part in value.split(","))
                    if options.get("from"):
                        found.append(options["from"])
    return found


def split_flags(rest: str) -> tuple[list[tuple[str, str]], str]:
    """An instruction's leading flags, as names and values, and what follows them."""
    flags = []
    while match := _FLAG.match(rest):
        flags.append((match[1], match[2] or ""))
        rest = rest[match.end() :]
    return flags, rest


def _escape(lines: list[str]) -> str:
    for line in lines:
        match = _DIRECTIVE.match(line.strip())
        if match is None:
            break
        if match[1].lower() == "escape" and match[2] in ("\\", "`"):
            return match[2]
    return "\\"


class _Splitter:
    """Joins continued lines, leaves out comments and takes here-documents along."""

    def __init__(self, lines: list[str], escape: str, path: Path) -> None:
        self._lines = lines
        self._path = path
        self._continued = re.compile(rf"{re.escape(escape)}[ \t]*\Z")
        self._at = 0

    def split(self) -> list[Instruction]:
        found = []
        while self._at < len(self._lines):
            line = self._lines[self._at].strip()
            if not line or line.startswith("#"):
                self._at += 1
            else:
                found.append(self._one())
        return found

    def _one(self) -> Instruction:
        first = self._at + 1
        text = ""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            if text and (not line.strip() or line.strip().startswith("#")):
                continue  # comments and empty lines inside a continued instruction do not count
            continued = self._continued.search(line)
            text += line[: continued.start()] if continued else line
            if continued is None:
                break
        words = text.strip().split(None, 1)
        if not words:
            continued_nothing = Instruction("", "", first, self._at)
            raise error_at(self._path, self._lines, continued_nothing, "nothing is continued here")
        keyword = words[0].upper()
        rest = words[1] if len(words) > 1 else ""
        instruction = Instruction(keyword, rest, first, self._at)
        if keyword not in INSTRUCTIONS:
            raise error_at(self._path, self._lines, instruction, f"unknown instruction {words[0]}")
        if not rest:
            raise error_at(self._path, self._lines, instruction, f"{keyword} needs arguments")
        if keyword in ("RUN", "COPY", "ADD"):
            self._take_heredocs(instruction)
        return instruction

    def _take_heredocs(self, instruction: Instruction) -> None:
        for match in HEREDOC.finditer(split_flags(instruction.rest)[1]):
            strip_tabs, quote, name = match[2] == "-", match[3], match[4]
            body = []
            while True:
                if self._at >= len(self._lines):
                    raise error_at(
                        self._path, self._lines, instruction, f"here-document {name} has no end"
                    )
                line = self._lines[self._at]
                self._at += 1
                line = line.lstrip("\t") if strip_tabs else line
                if line == name:
                    break
                body.append(line + "\n")
            instruction.heredocs.append(Heredoc(name, "".join(body), bool(quote)))
            instruction.last_line = self._at


def _parse_from(
    instruction: Instruction, arguments: Mapping[str, str], path: Path, lines: list[str]
) -> tuple[str, str]:
    flags, rest = split_flags(instruction.rest)
    words = _expand(rest, arguments).split()
    name = ""
    if len(words) == 3 and words[1].upper() == "AS":
        name = words[2].lower()
    elif len(words) != 1:
        raise error_at(path, lines, instruction, "must be FROM IMAGE or FROM IMAGE AS NAME")
    for flag, value in flags:
        platform = _expand(value, arguments)
        if flag != "--platform" or platform not in ("linux/amd64", "linux/x86_64", "linux"):
            raise error_at(path, lines, instruction, f"{flag}={value}: only linux/amd64 runs here")
    if not words[0]:
        raise error_at(path, lines, instruction, "the image's name is empty")
    return words[0], name


def _arguments(rest: str, known: Mapping[str, str]) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for word in rest.split():
        name, equals, value = word.partition("=")
        value = _expand(value.strip("'\""), known)
        found.append((name, value if equals else None))
    return found


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces $NAME, ${NAME}, ${NAME:-otherwise} and ${NAME:+instead}."""

    def value(match: re.Match[str]) -> str:
        found = variables.get(match[1] or match[2], "")
        if match[3] == "-":
            return found or match[4]
        if match[3] == "+":
            return match[4] if found else ""
        return found

    return _VARIABLE.sub(value, text)


def error_at(
    path: Path, lines: "list[str] | tuple[str, ...]", instruction: Instruction, what: str
) -> BuildError:
    """An error that shows the instruction it is about."""
    shown = Dockerfile(path, tuple(lines), "\\", (), ()).excerpt(
        instruction.line, instruction.last_line
    )
    return BuildError(f"{path}:{instruction.line}: {what}\n{shown}")
