"""The command line of `torpor vm run` and what it becomes."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.cli import vm_run as module
from torpor.errors import ImageNotFoundError, UsageError


def arguments(*words: str, **program: tuple[str, ...] | str) -> list[str]:
    line = module._parse(list(words))
    return module._vmm_arguments(line, module._Program(Path("/image.erofs"), **program))  # type: ignore[arg-type]


def test_plain() -> None:
    assert arguments("./x", "ls", "-l") == ["run", "--image", "/image.erofs", "--", "ls", "-l"]


def test_options_in_all_their_spellings() -> None:
    words = arguments("-it", "-m128M", "--name=n", "-w", "/w", "--trace", "--user", "1:2", ".", "p")
    assert words == [
        *("run", "-i", "-t", "--trace", "--memory", "128M"),
        *("--workdir", "/w", "--user", "1:2", "--name", "n", "--image", "/image.erofs", "--", "p"),
    ]
    assert "--trace=/t" in arguments("--trace=/t", ".", "p")


def test_trace_takes_its_value_only_with_an_equals_sign() -> None:
    assert arguments("--trace", "./x", "p")[-2:] == ["--", "p"]


def test_habits_of_docker_users() -> None:
    """What changes nothing is accepted; for what does not exist there is another way."""
    assert arguments("--rm", "--init", "./x", "p") == arguments("./x", "p")
    for word, instead in (("-d", "deploy"), ("-v", "image"), ("--network=host", "--egress")):
        with pytest.raises(UsageError, match=f"unknown option .*: .*{instead}"):
            module._parse([word, "./x", "p"])


def test_words_behind_the_image_are_the_programs() -> None:
    assert arguments("./x", "-i", "--memory", "--", "x")[-4:] == ["-i", "--memory", "--", "x"]
    assert arguments("--", "./x", "p")[-2:] == ["--", "p"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["entry", "cmd"]),
        (("arg",), ["entry", "arg"]),
        (("--entrypoint", "e"), ["e"]),
        (("--entrypoint", "e", "arg"), ["e", "arg"]),
        (("--entrypoint", "", "arg"), ["arg"]),
    ],
)
def test_entrypoint_and_cmd_as_docker_has_them(words: tuple[str, ...], expected: list[str]) -> None:
    split = len(words) - 1 if words and words[-1] == "arg" else len(words)
    typed = (*words[:split], "./x", *words[split:])
    found = arguments(*typed, entrypoint=("entry",), cmd=("cmd",))
    assert found[found.index("--") + 1 :] == expected


def test_environment_of_image_and_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "h=h")
    monkeypatch.delenv("NOT_HERE", raising=False)
    words = arguments(
        *("-e", "B=2", "--env", "HERE", "--env=NOT_HERE", "-e", "E="), "./x", "p",
        env=("A=0", "B=1"),
    )  # fmt: skip
    assert [value for name, value in itertools.pairwise(words) if name == "--env"] == [
        "A=0",
        "B=2",
        "HERE=h=h",
        "NOT_HERE",
        "E=",
    ]


def test_environment_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docker reads them; the command line wins."""
    monkeypatch.setenv("HERE", "here")
    file = tmp_path / "env"
    file.write_text('\ufeffA=0\n# comment\n\nA=1 # no comment\n  B="quoted"\nHERE\nC=file\n')
    words = arguments("-e", "C=line", "--env-file", str(file), "./x", "p", env=("A=0",))
    assert [value for name, value in itertools.pairwise(words) if name == "--env"] == [
        "A=1 # no comment",
        'B="quoted"',
        "HERE=here",
        "C=line",
    ]
    for bad in ("=1", "a b=1"):
        file.write_text(bad)
        with pytest.raises(UsageError, match="neither K=V nor K"):
            arguments("--env-file", str(file), "./x", "p")


def test_command_line_wins_over_the_images_user_and_workdir() -> None:
    words = arguments("-u", "5", "./x", "p", user="app", workdir="/app")
    assert words[words.index("--user") + 1] == "5"
    assert words[words.index("--workdir") + 1] == "/app"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nonsense", "x"], "unknown option '--nonsense': see torpor vm run --help"),
        (["-z", "x"], "unknown option '-z': see torpor vm run --help"),
        (["-iz", "x"], "unknown option '-z': see torpor vm run --help"),
        (["-i=1", "x"], "unknown option '-=': see torpor vm run --help"),
        (["--tty=1", "x"], "option '--tty' takes no value"),
        (["--memory"], "option '--memory' needs a value: --memory SIZE"),
        ([], "nothing to run: give an image, a directory or an EROFS file"),
        (["-i"], "nothing to run: give an image, a directory or an EROFS file"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        module._parse(words)
    assert str(caught.value) == message


def test_nothing_to_run_and_unnamed_variable() -> None:
    with pytest.raises(UsageError, match="names no program"):
        arguments("./x")
    with pytest.raises(UsageError, match="needs K=V"):
        arguments("-e", "=1", "./x", "p")


def test_missing_path() -> None:
    with pytest.raises(ImageNotFoundError, match=r"no such image file or directory: \./missing"):
        module._find_program("./missing", None)


@given(st.lists(st.text(min_size=1, alphabet="-=ietmM/.x 1"), max_size=8))
def test_any_command_line_is_understood_or_refused(words: list[str]) -> None:
    try:
        line = module._parse(words)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- either outcome is right
    else:
        assert line.image or "--help" in line.options
        assert line.argv == words[len(words) - len(line.argv) :]


def test_command_reports_one_line_and_125() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from torpor.cli import main; sys.exit(main())",
         "vm", "run", "--nonsense"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "torpor: unknown option '--nonsense': see torpor vm run --help\n"


def test_fast_path_imports_nothing_large() -> None:
    script = (
        "import sys; sys.argv = ['torpor', 'vm', 'run', '--help']\n"
        "from torpor.cli import main; main()\n"
        "names = 'click', 'dataclasses', 'subprocess', 'asyncio', 'json'\n"
        "print([m for m in names if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.startswith("Usage: torpor vm run")


def test_hand_over_keeps_arguments_and_signals(tmp_path: Path) -> None:
    """A stand-in for torpor-vmm shows what it is given: the words, and SIGPIPE not ignored."""
    vmm = tmp_path / "torpor-vmm"
    vmm.write_text('#!/bin/sh\nprintf "%s|" "$@"\ngrep SigIgn /proc/$$/status\n')
    vmm.chmod(0o755)
    image = tmp_path / "i.erofs"
    image.touch()
    script = (
        "import sys; from torpor.cli import main; sys.argv[0] = sys.argv.pop(1); sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "torpor"), "vm", "run", str(image), "a b"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    words, _, ignored = done.stdout.partition("|SigIgn:")
    assert words == f"run|--image|{image}|--|a b"
    assert not int(ignored, 16) & (1 << 12)
