"""`torpor vm list`, `snapshot`, `restore`, `inspect`: named VMs without a daemon."""

import json
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import TORPOR, Result, run_command
from tests.rootfs.build import root_image

pytestmark = pytest.mark.kvm

PROGRAM = (Path(__file__).parents[1] / "snapshot/programs/obey.py").read_text()
PYTHON = ("python3", "-u", "-c", PROGRAM)
WAIT_S = 60.0
ENDED_BY_A_COMMAND = 137


class Vm:
    """A VM in the foreground of another process, which obeys lines."""

    def __init__(self, data: Path, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [TORPOR, "--data", data, "vm", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ask(self, line: str) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
        if not ready:
            self.process.kill()
        answer = self.process.stdout.readline()
        if not answer:
            pytest.fail(f"no answer: {self.wait()}")
        return json.loads(answer)

    def wait(self) -> Result:
        stdout, stderr = self.process.communicate(timeout=60)
        return Result(self.process.returncode, stdout, stderr)


@contextmanager
def running(data: Path, name: str, *options: str | Path) -> Iterator[Vm]:
    image = root_image("python")
    with vm(data, "run", "-i", "--name", name, *options, image, *PYTHON) as started:
        yield started


@contextmanager
def vm(data: Path, *arguments: str | Path) -> Iterator[Vm]:
    started = Vm(data, *arguments)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def torpor(data: Path, *arguments: str | Path) -> Result:
    return run_command([TORPOR, "--data", data, *arguments])


def done(data: Path, *arguments: str | Path) -> str:
    result = torpor(data, *arguments)
    assert result.status == 0, result
    return result.stdout.decode()


def refused(data: Path, *arguments: str | Path) -> str:
    result = torpor(data, *arguments)
    assert result.status == 125, result
    assert result.stderr.startswith(b"torpor"), result
    return result.stderr.decode()


def listed(data: Path) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in json.loads(done(data, "vm", "list", "-o", "json"))}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_a_vm_goes_on_from_its_file(data: Path, tmp_path: Path) -> None:
    """Stored twice and ended; then twice restored, side by side, each with its own memory."""
    first, second, third = (tmp_path / f"{number}.vm" for number in range(3))
    with running(data, "counter") as counter:
        assert counter.ask("count") == 1
        assert listed(data)["counter"]["generation"] == 0
        done(data, "vm", "snapshot", "counter", first, "--keep-running")
        assert counter.ask("count") == 2
        assert listed(data)["counter"]["generation"] == 1
        before = counter.ask("identity")
        assert isinstance(before, dict)
        done(data, "vm", "snapshot", "counter", second)
        ended = counter.wait()
        assert ended.status == ENDED_BY_A_COMMAND
        assert b"ended by a command" in ended.stderr
    assert listed(data) == {}
    with (
        vm(data, "restore", "-i", first, "--name", "a") as a,
        vm(data, "restore", "-i", second) as b,
    ):
        assert a.ask("count") == 2
        assert b.ask("count") == 3
        assert b.ask("count") == 4
        assert set(listed(data)) == {"a", "counter"}
        identities = [before, a.ask("identity"), b.ask("identity")]
        for member in ("boot_id", "uuid4", "random"):
            assert len({each[member] for each in identities if isinstance(each, dict)}) == 3
        assert isinstance(identities[1], dict)
        assert identities[1]["host"] == "a"
        check = b.ask("check")
        assert isinstance(check, dict)
        assert check["wrong"] == []
        # Its template is there already: now only the difference is stored.
        done(data, "vm", "snapshot", "counter", third)
        assert b.wait().status == ENDED_BY_A_COMMAND
        assert a.ask("count") == 3
    found = json.loads(done(data, "vm", "inspect", "--output", "json", third))
    assert found["seal"] == "good"
    assert found["delta"]["kind"] == "delta"
    assert found["delta"]["bytes"] < 200_000
    assert f"sha256:{found['delta']['metadata']['template']}" == found["description"]["template"]
    assert "checksums:" in done(data, "vm", "inspect", third)
    with vm(data, "restore", "-i", third) as c:
        assert c.ask("count") == 5


def test_a_file_with_its_template_needs_none_in_the_data_directory(
    data: Path, tmp_path: Path
) -> None:
    small, whole = tmp_path / "small.vm", tmp_path / "whole.vm"
    with running(data, "x") as x:
        x.ask("count")
        done(data, "vm", "snapshot", "x", small, "--keep-running")
        done(data, "vm", "snapshot", "x", whole, "--with-template")
    assert small.stat().st_size < 4096
    assert whole.stat().st_size > 100_000
    shutil.rmtree(data / "templates")
    assert "template sha256:" in refused(data, "vm", "restore", small)
    with vm(data, "restore", "-i", whole) as restored:
        assert restored.ask("count") == 2

    image = json.loads(done(data, "vm", "inspect", "--output", "json", whole))["description"][
        "image"
    ]
    assert "stays: used by" in torpor(data, "image", "rm", image).stderr.decode()
    assert f"deleted {image}" in done(data, "image", "rm", "--force", image)
    assert image in refused(data, "vm", "restore", whole)


def test_a_busy_vm_is_stored(data: Path, tmp_path: Path) -> None:
    with running(data, "busy") as busy:
        busy.ask("spin")
        done(data, "vm", "snapshot", "busy", tmp_path / "busy.vm")
    with vm(data, "restore", "-i", tmp_path / "busy.vm") as restored:
        assert restored.ask("count") == 1


def test_a_traced_process_sleeps_in_its_stop(data: Path, tmp_path: Path) -> None:
    """In the middle of a system call, of which its tracer in the restored VM sees the end."""
    program = (Path(__file__).parents[1] / "snapshot/programs/tracer.py").read_text()
    command = (root_image("python"), "python3", "-u", "-c", program)
    getppid, enosys, own_pid = 110, -38, 2
    enters, leaves = ([5, getppid, result] for result in (enosys, own_pid))
    with vm(data, "run", "-i", "--name", "tracer", *command) as tracer:
        assert [tracer.ask("") for _ in range(3)] == [enters, leaves, enters]
        done(data, "vm", "snapshot", "tracer", tmp_path / "tracer.vm")
    with vm(data, "restore", "-i", tmp_path / "tracer.vm") as restored:
        assert [restored.ask("") for _ in range(100)] == [leaves, enters] * 50


def test_what_is_no_running_vm_is_refused(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.vm"
    assert "no VM named" in refused(data, "vm", "snapshot", "nobody", file)
    with running(data, "one") as one:
        one.ask("count")
        assert "take another name" in refused(
            data, "vm", "run", "--name", "one", root_image("python"), "true"
        )
        one.process.kill()
        one.process.wait()
    assert "no VM named" in refused(data, "vm", "snapshot", "one", file)
    assert "--name" in refused(data, "vm", "run", "--name", "a/b", root_image("python"), "true")
    assert not file.exists()


def test_only_a_regular_file_is_replaced(data: Path, tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    link.symlink_to(target)
    with running(data, "one") as one:
        one.ask("count")
        assert "no regular file" in refused(data, "vm", "snapshot", "one", pipe)
        assert "is a directory" in refused(data, "vm", "snapshot", "one", tmp_path)
        missing = tmp_path / "no" / "f.vm"
        assert "there is no directory" in refused(data, "vm", "snapshot", "one", missing)
        assert one.ask("count")
        done(data, "vm", "snapshot", "one", link)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.stat().st_size > 0


def test_a_full_disk_loses_nothing(data: Path, tmp_path: Path) -> None:
    """64 MiB that do not compress, into a file system with less: an error, and the VM goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "full", disk], check=True)
    try:
        with running(data, "big") as big:
            big.ask("count")
            big.ask("dirty 64")
            target = disk / "big.vm"
            target.write_bytes(b"what was there")
            assert "No space left" in refused(
                data, "vm", "snapshot", "big", target, "--with-template"
            )
            assert target.read_bytes() == b"what was there"
            assert [each.name for each in disk.iterdir()] == ["big.vm"]
            assert big.ask("count") == 2
            done(data, "vm", "snapshot", "big", tmp_path / "big.vm", "--with-template")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert (tmp_path / "big.vm").stat().st_size > 64 << 20
    with vm(data, "restore", "-i", tmp_path / "big.vm") as restored:
        assert restored.ask("count") == 3


def test_connections_are_reset_and_ports_published_anew(data: Path, tmp_path: Path) -> None:
    """A server that holds a connection when it is stored sees its end, and takes new ones."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = (
        "import socket\n"
        "listener = socket.create_server(('', 80))\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    connection, _ = listener.accept()\n"
        "    connection.sendall(b'hello')\n"
        "    try:\n"
        "        print(connection.recv(10), flush=True)\n"
        "    except OSError as error:\n"
        "        print(type(error).__name__, flush=True)\n"
    )
    publish = ("-p", f"127.0.0.1:{port}:80")
    image = root_image("python")
    with vm(data, "run", "--name", "s", *publish, image, "python3", "-c", server) as s:
        assert s.process.stdout is not None
        assert s.process.stdout.readline() == b"up\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert client.recv(5) == b"hello"
            done(data, "vm", "snapshot", "s", tmp_path / "s.vm")
            s.wait()
    with vm(data, "restore", *publish, tmp_path / "s.vm") as s:
        assert s.process.stdout is not None
        assert s.process.stdout.readline() == b"ConnectionResetError\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert client.recv(5) == b"hello"
            client.sendall(b"again")
            assert s.process.stdout.readline() == b"b'again'\n"


def test_a_file_is_for_its_data_directory_and_owner(data: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from torpor.controller.sealing import Seal
    from torpor.vms.files import read_snapshot, write_snapshot

    file = tmp_path / "x.vm"
    with running(data, "x") as x:
        x.ask("count")
        done(data, "vm", "snapshot", "x", file, "--with-template")
    assert "another data directory" in refused(tmp_path / "other", "vm", "restore", file)
    seal = Seal.of(data)
    stored = read_snapshot(file, seal)
    foreign = replace(stored.description, owner="uid:4242")
    write_snapshot(tmp_path / "foreign.vm", foreign, stored.delta, stored.template, seal)
    assert "belongs to uid:4242" in refused(data, "vm", "restore", tmp_path / "foreign.vm")
    newer = bytearray(file.read_bytes())
    newer[8] += 1
    (tmp_path / "newer.vm").write_bytes(newer)
    assert "version 2" in refused(data, "vm", "restore", tmp_path / "newer.vm")
    assert (data / "snapshot.key").stat().st_mode & 0o777 == 0o600
