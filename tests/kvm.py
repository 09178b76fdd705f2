"""Whether this machine has a usable KVM."""

import fcntl
import os
from functools import cache

_KVM_CREATE_VM = 0xAE01


@cache
def kvm_problem() -> str | None:
    """Why /dev/kvm cannot be used, or None if it can: it opens read-write and makes a VM.

    Anything that fails later than that is a failure of what is tested, not of the machine.
    """
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm does not open: {error.strerror}"
    try:
        os.close(fcntl.ioctl(kvm, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"/dev/kvm makes no VM: {error.strerror}"
    finally:
        os.close(kvm)
    return None
