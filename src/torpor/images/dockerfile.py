"""Reading Dockerfiles, as far as images, lines and what buildah lacks are concerned.

buildah does the building. Here a Dockerfile is split into instructions with their line numbers (so
that an error can be shown where it is), its base images are found (so that they can come from the
store), and a copy is written in which bases have the names that they have in buildah's storage and
what buildah 1.28 does not know is put into words that it knows: here-documents and `--link`.

Reference: the Dockerfile reference of docker, "Format", "Parser directives", "Here-Documents".
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
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
_HEREDOC = re.compile(r"(?<![<\w\\])(\d*)<<(-?)(['\"]?)([A-Za-z_][\w.]*)\3(?=\s|\Z)")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::?([-+])([^{}]*))?\})")
_FLAG = re.compile(r"(--[a-z-]+)(?:=(\S+))?\s*")
_PLATFORM = {
    f"{side}{name}": value
    for side in ("BUILD", "TARGET")
    for name, value in (("PLATFORM", "linux/amd64"), ("OS", "linux"), ("ARCH", "amd64"))
}
"""What FROM knows without an ARG."""
_DEFAULT_SHELL = ("/bin/sh", "-c")


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
            raise _error(path, lines, instruction, f"{instruction.keyword} before the first FROM")
    if not stages:
        raise BuildError(f"{path}: no FROM: a Dockerfile begins with the image it builds on")
    return Dockerfile(path, tuple(lines), escape, tuple(head), tuple(stages))


def base_images(dockerfile: Dockerfile, target: str = "") -> list[str]:
    """The images that the stages up to `target` need from elsewhere, each once, in order."""
    images: dict[str, None] = {}
    names: set[str] = set()
    for number, stage in enumerate(_stages_to(dockerfile, target)):
        for used in (stage.base, *_copied_from(stage)):
            if used.lower() not in names and used != "scratch" and not _is_stage(used, number):
                images[used] = None
        if stage.name:
            names.add(stage.name)
    return list(images)


@dataclass(frozen=True, slots=True)
class Translation:
    """A Dockerfile for buildah. `steps` has, by stage, the instruction that each step is of."""

    text: str
    steps: tuple[tuple[Instruction | None, ...], ...]


def translate(
    dockerfile: Dockerfile,
    rename: Callable[[str], str],
    arguments: Mapping[str, str],
    heredoc_file: Callable[[str], tuple[str, str]],
) -> Translation:
    """The Dockerfile as buildah gets it.

    `rename` says what a base image is called there; `arguments` are declared in every stage, so
    that RUN sees them as variables; `heredoc_file` keeps a text and returns a build context and
    the file's name in it.
    """
    out = [f"# escape={dockerfile.escape}"]
    out += [f"{instruction.keyword} {instruction.rest}" for instruction in dockerfile.head]
    steps: list[tuple[Instruction | None, ...]] = []
    names: set[str] = set()
    shells: dict[str, tuple[str, ...]] = {}
    for number, stage in enumerate(dockerfile.stages):
        bound = frozenset(names)
        shell = shells.get(stage.base.lower(), _DEFAULT_SHELL)

        def renamed(image: str, number: int = number, bound: frozenset[str] = bound) -> str:
            is_own = image.lower() in bound or image == "scratch" or _is_stage(image, number)
            return image if is_own else rename(image)

        alias = f" AS {stage.name}" if stage.name else ""
        out.append(f"FROM {renamed(stage.base)}{alias}")
        out += [f"ARG {name}={value}" for name, value in arguments.items()]
        stage_steps: list[Instruction | None] = [stage.instructions[0], *([None] * len(arguments))]
        for instruction in stage.instructions[1:]:
            if instruction.keyword == "SHELL":
                shell = _shell(instruction.rest) or shell
            lines = _translated(instruction, renamed, shell, heredoc_file, dockerfile)
            out += lines
            stage_steps += [instruction] * len(lines)
        steps.append(tuple(stage_steps))
        shells[str(number)] = shells[stage.name] = shell
        if stage.name:
            names.add(stage.name)
    return Translation("\n".join(out) + "\n", tuple(steps))


def _stages_to(dockerfile: Dockerfile, target: str) -> tuple[Stage, ...]:
    if not target:
        return dockerfile.stages
    for number, stage in enumerate(dockerfile.stages, 1):
        if stage.name == target.lower() or target == str(number - 1):
            return dockerfile.stages[:number]
    names = ", ".join(stage.name for stage in dockerfile.stages if stage.name) or "none"
    raise BuildError(f"{dockerfile.path}: no stage {target!r}; its named stages: {names}")


def _is_stage(name: str, before: int) -> bool:
    return name.isdigit() and int(name) < before


def _copied_from(stage: Stage) -> list[str]:
    found = []
    for instruction in stage.instructions:
        if instruction.keyword in ("COPY", "ADD", "RUN"):
            for flag, value in _flags(instruction.rest)[0]:
                if flag == "--from":
                    found.append(value)
                elif flag == "--mount":
                    options = dict(part.partition("=")[::2] for part in value.split(","))
                    if options.get("from"):
                        found.append(options["from"])
    return found


def _shell(rest: str) -> tuple[str, ...]:
    """The words of a SHELL instruction; none where it is wrong, which buildah then says."""
    try:
        words = json.loads(rest)
    except ValueError:
        return ()
    return tuple(map(str, words)) if isinstance(words, list) else ()


def _flags(rest: str) -> tuple[list[tuple[str, str]], str]:
    flags = []
    while match := _FLAG.match(rest):
        flags.append((match[1], match[2] or ""))
        rest = rest[match.end() :]
    return flags, rest


def _translated(
    instruction: Instruction,
    renamed: Callable[[str], str],
    shell: tuple[str, ...],
    heredoc_file: Callable[[str], tuple[str, str]],
    dockerfile: Dockerfile,
) -> list[str]:
    keyword, rest = instruction.keyword, instruction.rest
    if keyword not in ("COPY", "ADD", "RUN"):
        return [f"{keyword} {rest}"]
    flags, words = _flags(rest)
    kept = []
    for flag, value in flags:
        # A build's network is the machine's.
        if flag == "--link" or (flag, value) in (("--network", "default"), ("--network", "host")):
            continue
        if flag == "--from":
            value = renamed(value)
        elif flag == "--mount":
            value = ",".join(
                f"from={renamed(part.removeprefix('from='))}" if part.startswith("from=") else part
                for part in value.split(",")
            )
        kept.append(f"{flag}={value}" if value else flag)
    prefix = " ".join([keyword, *kept])
    if not instruction.heredocs:
        return [f"{prefix} {words}"]
    if keyword == "RUN":
        return [f"{prefix} {_run_heredoc(words, instruction.heredocs, shell)}"]
    return _copy_heredocs(prefix, words, instruction, heredoc_file, dockerfile)


def _run_heredoc(words: str, heredocs: list[Heredoc], shell: tuple[str, ...]) -> str:
    match = _HEREDOC.match(words)
    alone = match is not None and not words[match.end() :].strip()
    if alone and len(heredocs) == 1:
        script = heredocs[0].text
        if script.startswith("#!"):
            # An interpreter of its own: docker runs the document as a file.
            quoted = shlex.quote(script)
            script = (
                f'f=$(mktemp) && printf %s {quoted} > "$f" && chmod 700 "$f" && "$f"; '
                's=$?; rm -f "$f"; exit $s'
            )
        return json.dumps([*shell, script])
    documents = "".join(f"\n{document.text}{document.name}" for document in heredocs)
    # The shell reads the documents itself, under the names they have in the command.
    return json.dumps([*shell, words + documents + "\n"])


def _copy_heredocs(
    prefix: str,
    words: str,
    instruction: Instruction,
    heredoc_file: Callable[[str], tuple[str, str]],
    dockerfile: Dockerfile,
) -> list[str]:
    by_name = {document.name: document for document in instruction.heredocs}
    parts = words.split()
    sources, target = parts[:-1], parts[-1]
    out = []
    plain = []
    for source in sources:
        match = _HEREDOC.fullmatch(source)
        if match is None:
            plain.append(source)
            continue
        document = by_name[match[4]]
        if not document.literal and "$" in document.text:
            raise _error(
                dockerfile.path,
                dockerfile.lines,
                instruction,
                f"variables in a here-document of {instruction.keyword} are not supported; write "
                f"<<'{match[4]}' to keep the text as it is, or create the file with RUN",
            )
        context, file = heredoc_file(document.text)
        into = f"{target}{match[4]}" if target.endswith("/") else target
        out.append(f"{prefix.replace('ADD', 'COPY', 1)} --from={context} {file} {into}")
    if plain:
        out.append(f"{prefix} {' '.join([*plain, target])}")
    if len(sources) > 1 and not target.endswith("/"):
        raise _error(
            dockerfile.path, dockerfile.lines, instruction, "several sources need a target/"
        )
    return out


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
            raise _error(self._path, self._lines, continued_nothing, "nothing is continued here")
        keyword = words[0].upper()
        rest = words[1] if len(words) > 1 else ""
        instruction = Instruction(keyword, rest, first, self._at)
        if keyword not in INSTRUCTIONS:
            raise _error(self._path, self._lines, instruction, f"unknown instruction {words[0]}")
        if not rest:
            raise _error(self._path, self._lines, instruction, f"{keyword} needs arguments")
        if keyword in ("RUN", "COPY", "ADD"):
            self._take_heredocs(instruction)
        return instruction

    def _take_heredocs(self, instruction: Instruction) -> None:
        for match in _HEREDOC.finditer(_flags(instruction.rest)[1]):
            strip_tabs, quote, name = match[2] == "-", match[3], match[4]
            body = []
            while True:
                if self._at >= len(self._lines):
                    raise _error(
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
    flags, rest = _flags(instruction.rest)
    words = _expand(rest, arguments).split()
    name = ""
    if len(words) == 3 and words[1].upper() == "AS":
        name = words[2].lower()
    elif len(words) != 1:
        raise _error(path, lines, instruction, "must be FROM IMAGE or FROM IMAGE AS NAME")
    for flag, value in flags:
        platform = _expand(value, arguments)
        if flag != "--platform" or platform not in ("linux/amd64", "linux/x86_64", "linux"):
            raise _error(path, lines, instruction, f"{flag}={value}: only linux/amd64 runs here")
    if not words[0]:
        raise _error(path, lines, instruction, "the image's name is empty")
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


def _error(
    path: Path, lines: "list[str] | tuple[str, ...]", instruction: Instruction, what: str
) -> BuildError:
    shown = Dockerfile(path, tuple(lines), "\\", (), ()).excerpt(
        instruction.line, instruction.last_line
    )
    return BuildError(f"{path}:{instruction.line}: {what}\n{shown}")
