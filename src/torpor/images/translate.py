"""A Dockerfile as buildah gets it.

Bases have the names that they have in buildah's storage, and what buildah 1.28 does not know is put
into words that it knows: here-documents, `--link`, and `--network` where it says what is so anyway.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torpor.images.dockerfile import (
    HEREDOC,
    Dockerfile,
    Heredoc,
    Instruction,
    error_at,
    is_earlier_stage,
    split_flags,
)

_DEFAULT_SHELL = ("/bin/sh", "-c")


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
            is_own = image.lower() in bound or image == "scratch" or is_earlier_stage(image, number)
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
) -> list[str]:
    keyword, rest = instruction.keyword, instruction.rest
    if keyword not in ("COPY", "ADD", "RUN"):
        return [f"{keyword} {rest}"]
    flags, words = split_flags(rest)
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
        if not document.literal and "$" in document.text:
            raise error_at(
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
        raise error_at(
            dockerfile.path, dockerfile.lines, instruction, "several sources need a target/"
        )
    return out
