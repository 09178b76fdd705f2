"""Programs that look at others through /proc: procps, lsof and psutil say what they do natively."""

import pytest

from tests.harness import run_native, vm_run

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("command", [("sh", "/srv/tools.sh"), ("python3", "/srv/by_psutil.py")])
def test_what_is_found_out(command: tuple[str, str]) -> None:
    native = run_native("inspection", *command, alone=True)
    assert native.status == 0, native
    assert str(vm_run("inspection", *command)) == str(native)
