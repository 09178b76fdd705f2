"""Dockerfiles: instructions, lines, bases, and what is put into other words for buildah."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.images.detect import suggest_dockerfile
from torpor.images.dockerfile import base_images, last_and_its_bases, parse_dockerfile
from torpor.images.errors import BuildError, ImageError
from torpor.images.names import parse_reference
from torpor.images.translate import Translation, translate

PATH = Path("Dockerfile")


def translated(text: str, **build_args: str) -> tuple[Translation, list[str]]:
    documents: list[str] = []

    def keep(document: str) -> tuple[str, str]:
        documents.append(document)
        return "docs", str(len(documents) - 1)

    dockerfile = parse_dockerfile(text, PATH, build_args)
    found = translate(
        dockerfile, lambda name: f"local/{name}", {"X": "/x"}, keep, lambda name: {"BASE": name}
    )
    return found, documents


def test_instructions_and_their_lines() -> None:
    text = "# comment\nFROM a\nRUN one \\\n  # inside\n\n  two\nrun three\n"
    dockerfile = parse_dockerfile(text, PATH, {})
    found = [
        (i.keyword, i.rest.split(), i.line, i.last_line) for i in dockerfile.stages[0].instructions
    ]
    assert found == [
        ("FROM", ["a"], 2, 2),
        ("RUN", ["one", "two"], 3, 6),
        ("RUN", ["three"], 7, 7),
    ]


def test_escape_directive() -> None:
    dockerfile = parse_dockerfile("# escape=`\nFROM a\nRUN a `\nb\\\nRUN c\n", PATH, {})
    assert [i.rest for i in dockerfile.stages[0].instructions] == ["a", "a b\\", "c"]


def test_bases_are_found_everywhere() -> None:
    text = """
ARG VERSION=1
ARG NAME=base:${VERSION}
FROM --platform=$BUILDPLATFORM ${NAME} AS Build
FROM scratch
COPY --from=build /a /a
COPY --from=0 /a /a
COPY --from=tools:2 /t /t
RUN --mount=type=bind,from=mounted:3,target=/m true
FROM build
FROM last:${UNKNOWN:-4}
"""
    dockerfile = parse_dockerfile(text, PATH, {"VERSION": "9"})
    assert base_images(dockerfile) == ["base:9", "tools:2", "mounted:3", "last:4"]
    assert base_images(dockerfile, "build") == ["base:9"]
    assert base_images(dockerfile, "1") == ["base:9", "tools:2", "mounted:3"]
    with pytest.raises(BuildError, match="no stage 'nope'; its named stages: build"):
        base_images(dockerfile, "nope")


def test_the_last_stage_and_its_bases() -> None:
    text = "FROM a AS one\nFROM one AS two\nFROM b AS three\nFROM 1\n"
    dockerfile = parse_dockerfile(text, Path("Dockerfile"), {})
    assert [stage.base for stage in last_and_its_bases(dockerfile, "")] == ["1", "one", "a"]
    assert [stage.base for stage in last_and_its_bases(dockerfile, "three")] == ["b"]


def test_translation_renames_bases_and_knows_steps() -> None:
    found, _ = translated(
        "FROM a AS one\nRUN --network=host x\n"
        'FROM one\nCOPY --link --chmod=755 --from=b /f /f\nCMD ["c"]\n'
    )
    assert found.text.splitlines() == [
        "# escape=\\",
        "FROM local/a AS one",
        "ARG X=/x",
        "RUN x",
        "FROM one",
        "ARG X=/x",
        "COPY --chmod=755 --from=local/b /f /f",
        'CMD ["c"]',
    ]
    lines = [[step.line if step else None for step in stage] for stage in found.steps]
    assert lines == [[1, None, 2], [3, None, 4, 5]]


def test_here_documents() -> None:
    found, documents = translated(
        "FROM a\n"
        "RUN <<EOF\nset -e\necho $X\nEOF\n"
        "RUN cat <<A > /f && cat <<-'B'\none\nA\n\ttwo\nB\n"
        "COPY <<'c.txt' <<d.txt plain /dir/\n$HOME\nc.txt\nplain text\nd.txt\n"
        "CMD [\"x\"]\n"
    )  # fmt: skip
    assert found.text.splitlines()[3:] == [
        'RUN ["/bin/sh", "-c", "set -e\\necho $X\\n"]',
        'RUN ["/bin/sh", "-c", "cat <<A > /f && cat <<-\'B\'\\none\\nA\\ntwo\\nB\\n"]',
        "COPY --from=docs 0 /dir/c.txt",
        "COPY --from=docs 1 /dir/d.txt",
        "COPY plain /dir/",
        'CMD ["x"]',
    ]
    assert documents == ["$HOME\n", "plain text\n"]


def test_variables_in_here_documents_are_those_of_the_instruction() -> None:
    _, documents = translated(
        'ARG GLOBAL=g\nARG GIVEN=no\nFROM a AS one\nARG GLOBAL\nARG GIVEN=default OWN="o $GLOBAL"\n'
        "ENV A=1 B='$A' C=\"$A\\$\" D=x\\ y\nENV A=2 E=$A\nENV OLD form  of\\ it\n"
        "COPY <<E /f\n$GLOBAL ${GIVEN} [$OWN] $A$B$C $D $E $OLD; $BASE $TARGETARCH\nE\n"
        "ARG D=no TARGETARCH\nENV GLOBAL=env\n"
        "COPY <<E /f\n$D $GLOBAL $TARGETARCH ${NO:-or $A} ${A:+and} ${NO-} ${A+x} "
        "\\$A \"'$A'\" \\\\ $\nE\n"
        "COPY <<'E' /f\n$A\nE\n"
        "FROM one\nCOPY <<E /f\n$A|$OWN|$BASE\nE\n",
        GIVEN="given",
    )
    assert documents == [
        "g given [o g] 2$A$ x y 1 form  of it; local/a \n",
        "x y env amd64 or 2 and  x $A \"'2'\" \\ $\n",
        "$A\n",
        "2||local/a\n",
    ]


def test_a_step_without_network_is_built_by_itself() -> None:
    found, _ = translated(
        'ARG V=1\nFROM a AS tools\nRUN t\nFROM a AS app\nARG V=2 W\nONBUILD RUN later\nCMD ["c"]\n'
        'RUN one\nRUN --network=none --mount=type=bind,from=t:1,target=/t two\nENV X="$V"\n'
        'ENTRYPOINT ["e"]\nFROM app\nCOPY --from=app /x /x\n'
    )
    assert found.split(1) is None
    split = found.split(2)
    assert split is not None
    head = "# escape=\\\nARG V=1\n"
    tools = "FROM local/a AS tools\nARG X=/x\nRUN t\n"
    again = 'ARG X=/x\nARG V="2"\nARG W\n'
    assert split.before.text == (
        f'{head}{tools}FROM local/a AS app\nARG X=/x\nARG V=2 W\nCMD ["c"]\nRUN one\n'
    )
    assert split.step("i").text == (
        f"# escape=\\\nFROM i\n{again}RUN --mount=type=bind,from=local/t:1,target=/t two\n"
    )
    rest = split.rest("j")
    assert rest.text == (
        f'{head}{tools}FROM j AS app\n{again}CMD ["c"]\nONBUILD RUN later\nENV X="$V"\n'
        'ENTRYPOINT ["e"]\nFROM app\nARG X=/x\nCOPY --from=app /x /x\n'
    )
    assert rest.split(3) is None
    steps = [[step.line if step else None for step in stage] for stage in rest.steps]
    assert steps[1] == [4, None, None, None, None, 6, 10, 11]


def test_here_documents_run_in_the_shell_of_their_stage() -> None:
    found, _ = translated(
        'FROM a AS one\nSHELL ["/bin/bash", "-ec"]\nRUN <<E\nx\nE\n'
        "FROM ONE\nRUN <<E\ny\nE\nFROM a\nRUN <<E\nz\nE\nFROM 0\nRUN <<E\n0\nE\n"
    )
    assert [line for line in found.text.splitlines() if line.startswith("RUN")] == [
        'RUN ["/bin/bash", "-ec", "x\\n"]',
        'RUN ["/bin/bash", "-ec", "y\\n"]',
        'RUN ["/bin/sh", "-c", "z\\n"]',
        'RUN ["/bin/bash", "-ec", "0\\n"]',
    ]


def test_only_line_feeds_end_a_line() -> None:
    dockerfile = parse_dockerfile("FROM a\r\nRUN x\x0cy\u2028z\r\nRUN b\n", PATH, {})
    assert [i.rest for i in dockerfile.stages[0].instructions] == ["a", "x\x0cy\u2028z", "b"]


def test_from_knows_the_platform() -> None:
    text = "FROM --platform=$TARGETPLATFORM a-${TARGETARCH}-$BUILDOS\n"
    assert base_images(parse_dockerfile(text, PATH, {})) == ["a-amd64-linux"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM"),
        ("FROM a\n\\\n", "Dockerfile:2: nothing is continued"),
        ("RUN x", "Dockerfile:1: RUN before the first FROM"),
        ("FROM a\nFOO x", r"Dockerfile:2: unknown instruction FOO\n.*\n>    2 | FOO x"),
        ("FROM a\nRUN", "Dockerfile:2: RUN needs arguments"),
        ("FROM a b", "must be FROM IMAGE"),
        ("FROM $NOTHING", "must be FROM IMAGE"),
        ("FROM --platform=linux/arm64 a", "only linux/amd64"),
        ("FROM a\nRUN <<EOF\nx", "here-document EOF has no end"),
        ("FROM a\nCOPY <<E /f\n${X\nE\n", r"2: here-document E: \${X is not understood"),
        ("FROM a\nCOPY <<E /f\n${X#y}\nE\n", r"\${X# is not understood"),
        ("FROM a\nCOPY <<E /f\n${}\nE\n", r"\${} names no variable"),
        ("FROM a\nCOPY <<E /f\n${X:?y}\nE\n", "2: here-document E: X: y"),
        ("FROM a\nCOPY <<E /f\n${X:-y\nE\n", "} is missing"),
        (
            "FROM a AS t\nFROM a\nRUN --network=none --mount=type=bind,from=t,target=/t x\n",
            "Dockerfile:3: a step with --network=none cannot mount stage t; COPY --from=t",
        ),
        ("FROM a\nCOPY <<'E' <<'F' /f\nE\nF\n", "target/"),
    ],
)
def test_errors_point_at_the_line(text: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        translated(text)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "FROM a",
                "FROM b AS c",
                "RUN x \\",
                "RUN <<E",
                "E",
                "# c",
                "",
                "COPY --from=0 <<'E' /",
                "ARG X=1",
            ]
        )
        | st.text(max_size=30),
        max_size=12,
    )
)
def test_any_text_is_translated_or_an_error(lines: list[str]) -> None:
    try:
        found, _ = translated("\n".join(lines))
    except ImageError:
        return
    dockerfile = parse_dockerfile("\n".join(lines), PATH, {})
    assert len(found.steps) == len(dockerfile.stages)


SUGGESTIONS: list[tuple[dict[str, str], list[str]]] = [
    (
        {"package.json": '{"scripts":{"start":"x"}}'},
        ["node:20-slim", "npm install", '"npm", "start"'],
    ),
    (
        {"package.json": '{"main":"s.js"}', "s.js": "", "package-lock.json": ""},
        ["npm ci", '"node", "s.js"'],
    ),
    (
        {"package.json": "{}", "bun.lock": "", "index.ts": ""},
        ["oven/bun:1", '"bun", "index.ts"'],
    ),
    (
        {"requirements.txt": "Flask>=3\n", "app.py": ""},
        ["python:3.11-slim", '"flask", "--app", "app"'],
    ),
    (
        {"requirements.txt": "fastapi\nuvicorn[standard]\n", "main.py": ""},
        ['"uvicorn", "main:app"'],
    ),
    (
        {"pyproject.toml": '[project]\nname="x"\n[project.scripts]\nserve="x:y"\n'},
        ["pip install --no-cache-dir .", '"serve"'],
    ),
    ({"go.mod": "module x"}, ["golang:1-bookworm", "go build"]),
    ({"index.html": ""}, ["nginx:stable", "COPY . /usr/share/nginx/html"]),
]


@pytest.mark.parametrize(("files", "expected"), SUGGESTIONS)
def test_suggestions(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    suggestion = suggest_dockerfile(tmp_path)
    assert suggestion is not None
    for part in expected:
        assert part in suggestion.text
    for base in base_images(parse_dockerfile(suggestion.text, PATH, {})):
        parse_reference(base)


def test_nothing_to_suggest(tmp_path: Path) -> None:
    assert suggest_dockerfile(tmp_path) is None
    (tmp_path / "package.json").write_text("{")
    with pytest.raises(BuildError, match="no valid JSON"):
        suggest_dockerfile(tmp_path)
