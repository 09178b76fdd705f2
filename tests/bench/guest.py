"""`make bench-guest`: a microVM beside native Linux, on the same programs in the same run."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.native import enter_mount_namespace, native_root
from tests.harness import DEFAULT_ENVIRONMENT, REPOSITORY, TORPOR
from tests.rootfs.build import make_root, root_image
from torpor.bench import Bar, Report, WrongAnswerError, refuse_debug_build
from torpor.bench.timing import private_dirty_kib, run_times_ms
from torpor.erofs import make_erofs

VMM = TORPOR.with_name("torpor-vmm")
READ_MIB = 100
READ_BLOCK_BYTES = 128 << 10
START_RUNS = 50
PROGRAM_RUNS = 15
COMPUTE_RUNS = 7


def vmm_run(image: Path, *options: str) -> list[str | Path]:
    return [VMM, "run", *options, "--image", image, "--"]


def start_up(report: Report) -> None:
    times = run_times_ms([*vmm_run(root_image("programs")), "true"], START_RUNS)
    report.samples("start-static-true", times, "ms", bar=Bar(15))
    native = run_times_ms([*native_root("programs"), "true"], START_RUNS, env=DEFAULT_ENVIRONMENT)
    report.samples("start-static-true-native", native, "ms")

    # The command's own cost: it hands over to a program that ends at once.
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(TORPOR, temporary)
        shutil.copy(make_root("programs") / "usr/bin/true", Path(temporary, VMM.name))
        command: list[str | Path] = [
            Path(temporary, TORPOR.name),
            "vm",
            "run",
            root_image("programs"),
            "true",
        ]
        report.samples("python-command", run_times_ms(command, START_RUNS), "ms", bar=Bar(60))

    since_boot_ms = []
    for _ in range(START_RUNS):
        done = subprocess.run(
            [*vmm_run(root_image("programs")), "since_boot"], check=True, capture_output=True
        )
        since_boot_ms.append(int(done.stdout) / 1e6)
    report.samples("guest-entry-to-program", since_boot_ms, "ms", bar=Bar(3))


def idle_memory(report: Report) -> None:
    """Private memory of the VM process beyond what the program itself has natively."""
    script = "echo up; read line"
    figures = {}
    commands = {
        "guest": [*vmm_run(root_image("busybox"), "-i"), "sh", "-c", script],
        "native": [*native_root("busybox"), "/bin/sh", "-c", script],
    }
    for name, command in commands.items():
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=DEFAULT_ENVIRONMENT
        ) as process:
            if process.stdout is None or process.stdout.readline() != b"up\n":
                raise WrongAnswerError(f"idle memory: the {name} program did not start")
            time.sleep(0.5)
            figures[name] = private_dirty_kib(vm_process(process.pid))
            process.communicate(b"\n")
    beyond_kib = figures["guest"] - figures["native"]
    report.value("idle-busybox-private-memory", beyond_kib, "KiB", bar=Bar(3 << 10))


def vm_process(pid: int) -> int:
    """The process that holds the VM: the child of the command that was started, or itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def ratio(
    report: Report, case: str, guest: list[float], native: list[float], limit: float, unit: str
) -> None:
    """Rows for both sides, and one for how many times longer the guest takes (of the medians)."""
    ours = report.samples(case, guest, unit)
    theirs = report.samples(f"{case}-native", native, unit)
    report.value(f"{case}-ratio", ours.p50 / theirs.p50, "x", metric="ratio", bar=Bar(limit))


def program_starts(report: Report) -> None:
    programs = {
        "python": ("python3", "-c", "print(1)"),
        "node": ("node", "-e", "console.log(1)"),
        "bun": ("bun", "-e", "console.log(1)"),
    }
    for root, argv in programs.items():
        image = root_image(root)
        guest = [*vmm_run(image, "--memory", "1G"), *argv]
        native = [*native_root(root), *argv]
        ratio(
            report,
            f"{root}-command",
            run_times_ms(guest, PROGRAM_RUNS, expect=b"1\n"),
            run_times_ms(native, PROGRAM_RUNS, expect=b"1\n", env=DEFAULT_ENVIRONMENT),
            4,
            "ms",
        )


def output(command: list[str | Path]) -> list[list[int]]:
    """The numbers that a program prints, line by line."""
    done = subprocess.run(command, check=False, capture_output=True, env=DEFAULT_ENVIRONMENT)
    if done.returncode != 0:
        raise WrongAnswerError(f"{command}: exit status {done.returncode}, {done.stderr[:300]!r}")
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def computing(report: Report) -> None:
    argv = ["python3", "/srv/compute.py"]
    guest: list[float] = []
    native: list[float] = []
    answers: set[tuple[int, ...]] = set()
    for _ in range(COMPUTE_RUNS):  # in turn, so that both see the same machine
        for times, prefix in (
            (guest, vmm_run(root_image("python"))),
            (native, native_root("python")),
        ):
            took_ns, *answer = output([*prefix, *argv])[0]
            times.append(took_ns / 1e6)
            answers.add(tuple(answer))
    if len(answers) != 1:
        report.wrong_answer(f"compute.py gave different answers: {answers}")
    ratio(report, "cpu-bound-python", guest, native, 1.05, "ms")


def touching_memory(report: Report) -> None:
    argv = ["touch_memory", "64", "12"]
    guest = [ns / 1e6 for (ns,) in output([*vmm_run(root_image("programs")), *argv])]
    native = [ns / 1e6 for (ns,) in output([*native_root("programs"), *argv])]
    ratio(report, "touch-64-mib", guest[1:], native[1:], 4, "ms")


def reading(report: Report) -> None:
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as temporary:
        tree = Path(temporary, "tree")
        (tree / "bin").mkdir(parents=True)
        shutil.copy(make_root("programs") / "usr/bin/read_file", tree / "bin")
        (tree / "data").write_bytes(os.urandom(READ_MIB << 20))
        image = Path(temporary, "read.erofs")
        make_erofs(tree, image)
        argv = ["/bin/read_file", "/data", str(READ_BLOCK_BYTES), "9"]
        guest = output([*vmm_run(image), *argv])
        native = output([*native_root("read", tree), *argv])
        if {tuple(line[1:]) for line in guest} != {tuple(line[1:]) for line in native}:
            report.wrong_answer("the file read in the guest is not the file")
        ratio(
            report,
            "read-100-mib",
            [line[0] / 1e6 for line in guest[1:]],  # the first round warms
            [line[0] / 1e6 for line in native[1:]],
            2,
            "ms",
        )


# What `scheduling` does, how often in a round, and the bar for one of them.
SCHEDULING = {
    "getppid": (10_000, Bar(3)),
    "yield": (2_000, None),
    "pipe-threads": (1_000, None),
    "pipe-processes": (1_000, None),
    "fork-exec": (10, None),
}
SCHEDULING_ROUNDS = 20
EPOLL_ROUNDS = 500


def scheduling(report: Report) -> None:
    """System calls, and one processor's switches from thread to thread by calls that trap."""
    guest = [*vmm_run(root_image("programs"), "--no-rewrite"), "scheduling"]
    native = [*native_root("programs"), "scheduling"]
    rewritten = [*vmm_run(root_image("programs")), "scheduling"]
    for what, bar in (("getppid", Bar(0.1)), ("yield", None), ("pipe-processes", None)):
        count = SCHEDULING[what][0]
        lines = output([*rewritten, what, str(SCHEDULING_ROUNDS), str(count)])
        times_us = [ns / 1e3 / count for (ns,) in lines]
        report.samples(f"{what}-rewritten", times_us, "us", bar=bar)
    for suffix, prefix in (("", guest), ("-native", native)):
        for what, (count, bar) in SCHEDULING.items():
            lines = output([*prefix, what, str(SCHEDULING_ROUNDS), str(count)])
            times_us = [ns / 1e3 / count for (ns,) in lines]
            report.samples(what + suffix, times_us, "us", bar=None if suffix else bar)
        what, bar = "epoll-beside-spin", Bar(20, "p99")
        times_ms = [ns / 1e6 for (ns,) in output([*prefix, what, str(EPOLL_ROUNDS), "1"])]
        report.samples(what + suffix, times_ms, "ms", bar=None if suffix else bar)


def main() -> int:
    refuse_debug_build()
    enter_mount_namespace("tests.bench.guest")
    os.chdir(REPOSITORY)
    report = Report("guest")
    parts = (
        start_up,
        idle_memory,
        program_starts,
        computing,
        touching_memory,
        reading,
        scheduling,
    )
    for part in parts:
        try:
            part(report)
        except (WrongAnswerError, subprocess.CalledProcessError) as error:
            report.wrong_answer(f"{part.__name__}: {error}")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
