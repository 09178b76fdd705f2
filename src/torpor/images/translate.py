"""A Dockerfile as buildah gets it.

Bases have the names that they have in buildah's storage, and what buildah 1.28 does not know is put
into words that it knows: here-documents, `--link`, and `--network` where it says what is so anyway.
A step with `--network=none` is built by itself: `Translation.split`.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torpor.images.dockerfile import (
    HEREDOC,
    Dockerfile,
    Heredoc,
    Instruction,
    error_at,
    is_earlier_stage,
    split_flags,
)
from torpor.images.variables import BadSubstitutionError, Variables, expand

_DEFAULT_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True)
class Line:
    """A line for buildah, and the instruction that it is of, if it is of one."""

    text: str
    instruction: Instruction | None = None
    offline: bool = False
    """It is a step that has no network."""
    declarations: tuple[str, ...] = ()
    """Of such a step: what sets the arguments again that are declared before it."""


@dataclass(frozen=True, slots=True)
class Split:
    """A build in three parts, each of which begins with the image of the one before."""

    before: "Translation"
    step: Callable[[str], "Translation"]
    rest: Callable[[str], "Translation"]


@dataclass(frozen=True, slots=True)
class Translation:
    """A Dockerfile for buildah: what stands before the first FROM, and the stages' lines."""

    head: tuple[str, ...]
    stages: tuple[tuple[Line, ...], ...]

    @property
    def text(self) -> str:
        """The Dockerfile."""
        lines = [*self.head, *(line.text for stage in self.stages for line in stage)]
        return "\n".join(lines) + "\n"

    @property
    def steps(self) -> tuple[tuple[Instruction | None, ...], ...]:
        """By stage, the instruction that each step is of."""
        return tuple(tuple(line.instruction for line in stage) for stage in self.stages)

    def split(self, stages: int) -> Split | None:
        """At the first step among so many stages that has no network; None where none is left."""
        for number, stage in enumerate(self.stages[:stages]):
            for at, line in enumerate(stage):
                if line.offline:
                    return self._split(number, at)
        return None

    def _split(self, number: int, at: int) -> Split:
        stage, earlier = self.stages[number], self.stages[:number]
        step, first, before = stage[at], stage[0], stage[1:at]
        # Those of every stage, which are of no instruction, then the stage's own.
        declared = [line for line in before if line.instruction is None]
        declared += [Line(text) for text in step.declarations]
        # Triggers are for who builds on the whole stage, not for its own second part; ENTRYPOINT
        # takes back a CMD that is the base's.
        triggers = [line for line in before if _is(line, "ONBUILD")]
        command = [replace(line, instruction=None) for line in before if _is(line, "CMD")][-1:]
        alias = first.text.partition(" AS ")[1:]

        def whole(image: str) -> Translation:
            begins = replace(first, text="".join((f"FROM {image}", *alias)))
            rest = (begins, *declared, *command, *triggers, *stage[at + 1 :])
            return Translation(self.head, (*earlier, rest, *self.stages[number + 1 :]))

        return Split(
            Translation(
                self.head, (*earlier, (first, *(line for line in before if line not in triggers)))
            ),
            lambda image: Translation(
                self.head[:1], ((Line(f"FROM {image}"), *declared, replace(step, offline=False)),)
            ),
            whole,
        )


def _is(line: Line, keyword: str) -> bool:
    return line.instruction is not None and line.instruction.keyword == keyword


def translate(
    dockerfile: Dockerfile,
    rename: Callable[[str], str],
    arguments: Mapping[str, str],
    heredoc_file: Callable[[str], tuple[str, str]],
    environment: Callable[[str], Mapping[str, str]],
) -> Translation:
    """The Dockerfile as buildah gets it.

    `rename` says what a base image is called there; `arguments` are declared in every stage, so
    that RUN sees them as variables; `heredoc_file` keeps a text and returns a build context and
    the file's name in it; `environment` says what a base image, by its name there, sets.
    """
    head = [f"# escape={dockerfile.escape}"]
    head += [f"{instruction.keyword} {instruction.rest}" for instruction in dockerfile.head]
    stages: list[tuple[Line, ...]] = []
    names: set[str] = set()
    shells: dict[str, tuple[str, ...]] = {}
    known: dict[str, Variables] = {}
    for number, stage in enumerate(dockerfile.stages):
        bound = frozenset(names)
        shell = shells.get(stage.base.lower(), _DEFAULT_SHELL)

        def renamed(image: str, number: int = number, bound: frozenset[str] = bound) -> str:
            is_own = image.lower() in bound or image == "scratch" or is_earlier_stage(image, number)
            return image if is_own else rename(image)

        base, alias = renamed(stage.base), f" AS {stage.name}" if stage.name else ""
        former = known.get(stage.base.lower())
        inherited = _Inherited(base, environment).get if former is None else former.environment
        variables = Variables(
            inherited, dockerfile.build_args, dockerfile.arguments, dockerfile.escape
        )
        lines = [Line(f"FROM {base}{alias}", stage.instructions[0])]
        lines += [Line(f"ARG {name}={value}") for name, value in arguments.items()]
        for instruction in stage.instructions[1:]:
            if instruction.keyword == "SHELL":
                shell = _shell(instruction.rest) or shell
            texts, offline = _translated(
                instruction, renamed, shell, heredoc_file, dockerfile, variables
            )
            declarations = tuple(variables.declarations()) if offline else ()
            lines += [Line(text, instruction, offline, declarations) for text in texts]
            variables.take(instruction)
        stages.append(tuple(lines))
        shells[str(number)] = shells[stage.name] = shell
        known[str(number)] = known[stage.name] = variables
        if stage.name:
            names.add(stage.name)
    return Translation(tuple(head), tuple(stages))


class _Inherited:
    """The variables of a base image, asked for when one is needed."""

    def __init__(self, base: str, environment: Callable[[str], Mapping[str, str]]) -> None:
        self._base = base
        self._ask = environment
        self._known: Mapping[str, str] | None = {} if base == "scratch" else None

    def get(self, name: str) -> str | None:
        if self._known is None:
            self._known = self._ask(self._base)
        return self._known.get(name)


def _shell(rest: str) -> tuple[str, ...]:
    """The words of a SHELL instruction; none where it is wrong, which buildah then says."""
    try:
        words = json.loads(rest)
    except ValueError:
        return ()
    return tuple(map(str, words)) if isinstance(words, list) else ()


def _translated(
    instruction: Instruction,
    renamed: Callable[[str], str],
    shell: tuple[str, ...],
    heredoc_file: Callable[[str], tuple[str, str]],
    dockerfile: Dockerfile,
    variables: Variables,
) -> tuple[list[str], bool]:
    """The lines of an instruction, and whether they are to be built without a network."""
    keyword, rest = instruction.keyword, instruction.rest
    if keyword not in ("COPY", "ADD", "RUN"):
        return [f"{keyword} {rest}"], False
    flags, words = split_flags(rest)
    kept = []
    offline = keyword == "RUN" and ("--network", "none") in flags
    for flag, value in flags:
        # A build's network is the machine's.
        if flag == "--link" or (flag == "--network" and value in ("default", "host", "none")):
            continue
        if flag == "--from":
            value = renamed(value)
        elif flag == "--mount":
            if offline:
                _check_mount(value, renamed, instruction, dockerfile)
            value = ",".join(
                f"from={renamed(part.removeprefix('from='))}" if part.startswith("from=") else part
                for part in value.split(",")
            )
        kept.append(f"{flag}={value}" if value else flag)
    prefix = " ".join([keyword, *kept])
    if not instruction.heredocs:
        return [f"{prefix} {words}"], offline
    if keyword == "RUN":
        return [f"{prefix} {_run_heredoc(words, instruction.heredocs, shell)}"], offline
    return _copy_heredocs(prefix, words, instruction, heredoc_file, dockerfile, variables), False


def _check_mount(
    value: str, renamed: Callable[[str], str], instruction: Instruction, dockerfile: Dockerfile
) -> None:
    """Refuses a mount that a step which is built by itself cannot have."""
    for part in value.split(","):
        name, _, source = part.partition("=")
        if name == "from" and renamed(source) == source:
            raise error_at(
                dockerfile.path,
                dockerfile.lines,
                instruction,
                f"a step with --network=none cannot mount stage {source}; COPY --from={source} "
                "what it needs before it",
            )


def _run_heredoc(words: str, heredocs: list[Heredoc], shell: tuple[str, ...]) -> str:
    match = HEREDOC.match(words)
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
    variables: Variables,
) -> list[str]:
    by_name = {document.name: document for document in instruction.heredocs}
    parts = words.split()
    sources, target = parts[:-1], parts[-1]
    out = []
    plain = []
    for source in sources:
        match = HEREDOC.fullmatch(source)
        if match is None:
            plain.append(source)
            continue
        document = by_name[match[4]]
        text = document.text
        if not document.literal:
            try:
                # As in a shell's: quotes stay, and the backslash is no matter of `# escape=`.
                text = expand(text, variables.lookup, quotes=False)
            except BadSubstitutionError as error:
                what = f"here-document {document.name}: {error}"
                raise error_at(dockerfile.path, dockerfile.lines, instruction, what) from error
        context, file = heredoc_file(text)
        into = f"{target}{match[4]}" if target.endswith("/") else target
        out.append(f"{prefix.replace('ADD', 'COPY', 1)} --from={context} {file} {into}")
    if plain:
        out.append(f"{prefix} {' '.join([*plain, target])}")
    if len(sources) > 1 and not target.endswith("/"):
        raise error_at(
            dockerfile.path, dockerfile.lines, instruction, "several sources need a target/"
        )
    return out
