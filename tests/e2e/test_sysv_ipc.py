"""System V IPC: what programs see is as natively."""

import pytest

from tests.harness import run_native, vm_run

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("name", ["sysv_shm", "sysv_sem", "sysv_msg"])
def test_sysv_ipc(name: str) -> None:
    native = run_native("programs", name, alone=True)
    assert native.status == 0
    assert str(vm_run("programs", name)) == str(native)


def test_limits_can_be_set() -> None:
    script = """
        cd /proc/sys/kernel
        echo 10 20 >sem; echo 5000 >shmmax; echo 5 >msgmni
        cat sem shmmax msgmni
        echo -1 >shmmni || echo x >msgmax || echo 40000 >semmni || echo 99999 >shmmni
        cat shmmni
    """
    result = vm_run("busybox", "sh", "-c", script)
    assert result.stdout == b"10\t20\t500\t32000\n5000\n5\n4096\n"
