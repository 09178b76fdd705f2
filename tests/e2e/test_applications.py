"""Programs of many processes that nobody changed, inside a microVM: as natively, byte by byte."""

import pytest

from tests.harness import run_native, vm_run

pytestmark = pytest.mark.kvm

ROOT = "applications"
TIMEOUT_S = 600.0


def compare(*argv: str) -> str:
    """What both runs print and how they end, which must be the same; standard output."""
    native = run_native(ROOT, *argv, timeout_s=TIMEOUT_S, alone=True)
    guest = vm_run(ROOT, *argv, options=("--memory", "1G"), timeout_s=TIMEOUT_S)
    assert str(guest) == str(native)
    return guest.stdout.decode()


def test_shell_script() -> None:
    assert compare("bash", "/srv/shell.sh").endswith("at the end\n")


def test_checksum_of_all_names() -> None:
    command = "find / -xdev -not -path '/dev*' -not -path '/mnt*' -not -path '/tmp*'"
    command += " -not -path '/run/torpor*' -not -path /uk"  # what a microVM adds
    assert len(compare("bash", "-c", f"{command} | LC_ALL=C sort | sha256sum")) == 68


def test_gcc() -> None:
    assert compare("bash", "/srv/compile.sh").endswith("nothing left to do\n")


def test_git() -> None:
    assert len(compare("bash", "/srv/repository.sh").splitlines()) > 12


def test_apt_without_a_network() -> None:
    assert "status 100" in compare("bash", "/srv/packages.sh")


def test_postgresql() -> None:
    assert compare("bash", "/srv/database.sh").endswith("stopped\n")


def test_gunicorn_and_uvicorn() -> None:
    assert compare("bash", "/srv/servers.sh").endswith("uvicorn 0\n")
