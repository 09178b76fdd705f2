"""The emulated machine: its packages, its initramfs, booting it, and what it reports.

The machine runs a list of commands one after the other and reports on its serial line, for each,
a line `@@ N STATUS` with standard output and standard error as hexadecimal words behind it.
"""

import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness import REPOSITORY, Result
from tests.rootfs.fetch import debian_packages
from tests.rootfs.lock import read_lock
from tests.stock_kvm.initramfs import InitramfsWriter

BUILD = REPOSITORY / "build" / "stock-kvm"
BOOT_ATTEMPTS = 3
BOOT_LIMIT_S = 60.0
_KERNEL_MODULES = ("virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd")
_REPORT = re.compile(rb"^@@ (\d+) (\d+) ([0-9a-f]*) ([0-9a-f]*)$", re.MULTILINE)
_READY = b"@@ READY"

_INIT = """#!/bin/busybox sh
PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
exec </dev/null >/dev/console 2>&1
for module in irqbypass kvm kvm-amd; do insmod /modules/$module.ko; done
test -c /dev/kvm && echo "@@ READY"
hex() { hexdump -ve '1/1 "%02x"' "$1"; }
run() {
    number=$1 limit=$2; shift 2
    timeout -s KILL "$limit" "$@" >/tmp/out 2>/tmp/err; status=$?
    echo "@@ $number $status $(hex /tmp/out) $(hex /tmp/err)"
}
. /commands
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command for the machine, whose name is free of meaning there."""

    argv: tuple[str, ...]
    limit_s: int = 60


class StockKvmMachine:
    """Boots with `files` in its root directory (path: content or a file here)."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._host, self._kernel = _unpacked_packages()

    def run(self, commands: list[Command]) -> list[Result | None]:
        """Boot, run `commands`, and give each one's result; None for those it did not come to.

        A machine that does not get as far as its first command is booted again, at most twice.
        Raises RuntimeError with the end of its console if no boot got there.
        """
        initramfs = BUILD / "initramfs.cpio"
        with initramfs.open("wb") as file:
            self._write_initramfs(InitramfsWriter(file), commands)
        limit_s = BOOT_LIMIT_S + sum(command.limit_s for command in commands)
        console = b""
        for _ in range(BOOT_ATTEMPTS):
            console = self._boot(initramfs, limit_s)
            if _READY in console:
                return _reports(console, len(commands))
        raise RuntimeError(
            f"no boot of {BOOT_ATTEMPTS} got as far as /dev/kvm:\n"
            f"{console[-3000:].decode(errors='replace')}"
        )

    def _write_initramfs(self, archive: InitramfsWriter, commands: list[Command]) -> None:
        parents = {str(parent) for path in self._files for parent in Path(path).parents} - {"."}
        for directory in sorted(parents | {"bin", "dev", "modules", "proc", "sys", "tmp"}):
            archive.directory(directory)
        archive.device("dev/console", 5, 1)
        archive.device("dev/null", 1, 3)
        busybox = self._host / "bin/busybox"
        archive.file("bin/busybox", busybox)
        applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
        for applet in set(applets.stdout.split()) - {"busybox"}:
            archive.symlink(f"bin/{applet}", "busybox")
        modules = next((self._kernel / "lib/modules").iterdir()) / "kernel"
        for module in _KERNEL_MODULES:
            archive.file(f"modules/{Path(module).name}.ko", modules / f"{module}.ko")
        for path, content in self._files.items():
            archive.file(path, content)
        lines = [
            f"run {number} {command.limit_s} {shlex.join(command.argv)}\n"
            for number, command in enumerate(commands)
        ]
        archive.file("commands", "".join(lines).encode())
        archive.file("init", _INIT.encode())
        archive.close()

    def _boot(self, initramfs: Path, limit_s: float) -> bytes:
        """Everything that one boot wrote to its serial line, until it powered off or hung."""
        console, errors = BUILD / "console.log", BUILD / "qemu.log"
        libraries = ":".join(
            str(self._host / path) for path in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
        )
        command: list[str | Path] = [
            self._host / "usr/bin/qemu-system-x86_64",
            *("-L", self._host / "usr/share/qemu", "-L", self._host / "usr/share/seabios"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            # Two virtual CPUs, or a thread for each, hang now and then in QEMU 7.2.
            *("-M", "q35", "-accel", "tcg,thread=single", "-cpu", "EPYC", "-smp", "1"),
            *("-m", "2048", "-serial", f"file:{console}"),
            *("-kernel", next((self._kernel / "boot").glob("vmlinuz-*")), "-initrd", initramfs),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
        ]
        environment = {
            "LD_LIBRARY_PATH": libraries,
            "QEMU_MODULE_DIR": str(self._host / "usr/lib/x86_64-linux-gnu/qemu"),
            "PATH": "/usr/bin:/bin",
        }
        console.write_bytes(b"")
        began = time.monotonic()
        with (
            errors.open("wb") as log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            ) as process,
        ):
            while process.poll() is None:
                seen = console.read_bytes()
                elapsed_s = time.monotonic() - began
                if elapsed_s > limit_s or (elapsed_s > BOOT_LIMIT_S and _READY not in seen):
                    process.kill()
                time.sleep(0.1)
        return console.read_bytes().replace(b"\r", b"") or errors.read_bytes()


def _reports(console: bytes, count: int) -> list[Result | None]:
    found: list[Result | None] = [None] * count
    for number, status, stdout, stderr in _REPORT.findall(console):
        found[int(number)] = Result(
            int(status), bytes.fromhex(stdout.decode()), bytes.fromhex(stderr.decode())
        )
    return found


def _unpacked_packages() -> tuple[Path, Path]:
    """The directories with QEMU and with the kernel, nothing of which is installed."""
    lock = read_lock()
    wanted = {name: lock.debian[name] for name in lock.roots["stock-kvm"]}
    packages = debian_packages(wanted)
    host, kernel = BUILD / "host", BUILD / "kernel"
    stamp, content = BUILD / "packages", repr(sorted(path.name for path in packages.values()))
    if not stamp.exists() or stamp.read_text() != content:
        shutil.rmtree(BUILD, ignore_errors=True)
        BUILD.mkdir(parents=True)
        for name, deb in packages.items():
            target = kernel if name.startswith("linux-image") else host
            subprocess.run(["dpkg-deb", "--extract", deb, target], check=True)
        stamp.write_text(content)
    return host, kernel
