"""Bad input: one clear line on stderr and docker's exit status, never a crash of the VM process."""

import os
import random
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.harness import TORPOR, Result, run_command, run_native
from tests.kvm import kvm_problem
from tests.rootfs.build import make_root, root_image
from torpor.erofs import make_erofs

SUPERBLOCK_OFFSET = 1024
FUZZ_RUNS = 40


def vm(*words: str | Path, env: dict[str, str] | None = None, timeout_s: float = 60) -> Result:
    return run_command([TORPOR, "vm", "run", *words], env=env, timeout_s=timeout_s)


def assert_refused(result: Result, status: int, *mentions: str) -> None:
    """One line on stderr that mentions the input, nothing on stdout, and the right exit status."""
    error = result.stderr.decode()
    assert result.status == status, result
    assert result.stdout == b""
    assert error.count("\n") == 1, error
    assert error.startswith("torpor"), error
    for mention in mentions:
        assert mention.lower() in error.lower()


def image_with(tmp_path: Path, name: str, content: bytes, mode: int = 0o755) -> Path:
    """An image with busybox and one more file."""
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/busybox").write_bytes((make_root("busybox") / "usr/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    (tree / name).write_bytes(content)
    (tree / name).chmod(mode)
    make_erofs(tree, tmp_path / "image.erofs")
    return tmp_path / "image.erofs"


def image_without_checksum() -> bytearray:
    """Of busybox; the checksum covers the inodes in the superblock's block as well."""
    content = bytearray(root_image("busybox").read_bytes())
    (flags,) = struct.unpack_from("<I", content, SUPERBLOCK_OFFSET + 8)
    struct.pack_into("<I", content, SUPERBLOCK_OFFSET + 8, flags & ~1)
    return content


def directory_blocks(image: bytes | bytearray, inode: int) -> list[bytes]:
    """The blocks of the directory at `inode`, of which the last may lie behind the inode."""
    layout, extended = image[inode] >> 1 & 7, image[inode] & 1
    size = struct.unpack_from("<Q" if extended else "<I", image, inode + 8)[0]
    attributes, start = struct.unpack_from("<2xH12xI", image, inode)
    starts = [(start << 12) + at for at in range(0, size, 4096)]
    if layout == 2:
        starts[-1] = inode + (64 if extended else 32) + (attributes and 8 + 4 * attributes)
    lengths = [min(4096, size - at) for at in range(0, size, 4096)]
    return [bytes(image[at : at + length]) for at, length in zip(starts, lengths, strict=True)]


def inode_offset(image: bytes | bytearray, path: str) -> int:
    """Where the inode of `path` is, by the directories of the image."""
    root, meta = struct.unpack_from("<H24xI", image, SUPERBLOCK_OFFSET + 14)
    nid = root
    for name in path.split("/"):
        entries = {}
        for block in directory_blocks(image, (meta << 12) + 32 * nid):
            count = struct.unpack_from("<H", block, 8)[0] // 12
            found = [struct.unpack_from("<QH", block, 12 * number) for number in range(count)]
            ends = [start for _, start in found[1:]] + [len(block)]
            for (child, start), end in zip(found, ends, strict=True):
                entries[block[start:end].rstrip(b"\0")] = child
        nid = entries[name.encode()]
    return int((meta << 12) + 32 * nid)


def test_missing_image(tmp_path: Path) -> None:
    assert_refused(vm(tmp_path / "none.erofs", "true"), 125, "none.erofs")


def test_unknown_image_name(tmp_path: Path) -> None:
    assert_refused(vm("--data", tmp_path, "no-such-image", "true"), 125, "no-such-image")


def test_unknown_option() -> None:
    assert_refused(vm("--colour", "./x", "true"), 125, "--colour")


def test_nothing_to_run() -> None:
    assert_refused(vm(), 125, "nothing to run")
    assert_refused(vm(root_image("busybox")), 125, "nothing to run")


def test_another_architecture() -> None:
    result = run_command(["setarch", "i686", TORPOR, "vm", "run", root_image("busybox"), "true"])
    assert_refused(result, 125, "i686")


def test_no_kvm() -> None:
    """With /dev/kvm hidden, and with one that may not be opened."""
    hide = 'mount -t tmpfs none /dev && exec "$@"'
    words: list[str | Path] = [TORPOR, "vm", "run", root_image("busybox"), "true"]
    result = run_command(["unshare", "--mount", "--map-root-user", "sh", "-c", hide, "sh", *words])
    assert_refused(result, 125, "/dev/kvm")


def vmm_as_nobody(tmp_path: Path, image_mode: int, kvm_mode: str) -> Result:
    """`torpor-vmm run` by a user of no group, with such an image and such a /dev/kvm."""
    image = tmp_path / "image.erofs"
    image.write_bytes(root_image("busybox").read_bytes())
    program = tmp_path / "torpor-vmm"
    program.write_bytes(TORPOR.with_name("torpor-vmm").read_bytes())
    for path in (program, *list(tmp_path.parents)[:-2], tmp_path):
        path.chmod(path.stat().st_mode | 0o055)
    image.chmod(image_mode)
    script = (
        f"mount -t tmpfs none /mnt && mknod -m {kvm_mode} /mnt/kvm c 10 232 && "
        'mount --bind /mnt/kvm /dev/kvm && exec "$@"'
    )
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    command = (program, "run", "--image", image, "--", "true")
    return run_command(["unshare", "--mount", "sh", "-c", script, "sh", *nobody, *command])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")
def test_no_permission_for_kvm(tmp_path: Path) -> None:
    assert_refused(vmm_as_nobody(tmp_path, 0o644, "600"), 125, "/dev/kvm", "permission")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become someone else")
def test_image_that_may_not_be_read(tmp_path: Path) -> None:
    assert_refused(vmm_as_nobody(tmp_path, 0o600, "666"), 125, "image.erofs", "permission denied")


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "loop"])
def test_image_that_is_no_file(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    match kind:
        case "directory":
            command: list[str | Path] = [TORPOR.with_name("torpor-vmm"), "run", "--image", tmp_path]
            assert_refused(run_command([*command, "--", "true"]), 125, str(tmp_path), "directory")
            return
        case "pipe":
            os.mkfifo(image)
        case "device":
            image = Path("/dev/null")
        case "loop":
            image.symlink_to(image)
    assert_refused(vm(image, "true"), 125, str(image))


def test_option_without_its_value() -> None:
    assert_refused(vm("--memory"), 125, "--memory")
    assert_refused(vm("--interactive=yes", "./x", "true"), 125, "--interactive")
    assert_refused(vm("--env", "=x", root_image("busybox"), "true"), 125, "--env")


def test_nothing_left_of_the_entry_point() -> None:
    assert_refused(vm("--entrypoint", "", root_image("busybox")), 125, "nothing to run")


def test_terminal_without_one() -> None:
    assert_refused(vm("-it", root_image("busybox"), "true"), 125, "not a terminal")


@pytest.mark.kvm
class TestWithKvm:
    """Refusals that come after KVM has been opened."""

    @pytest.mark.parametrize("content", [b"", b"x", b"not an image" * 1000, bytes(1 << 20)])
    def test_no_erofs(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "image").write_bytes(content)
        assert_refused(vm(tmp_path / "image", "true"), 125, "image")

    @pytest.mark.parametrize("size", [512, 1024, 1100, 4096, 8192, 1 << 20])
    def test_truncated_image(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "image").write_bytes(root_image("busybox").read_bytes()[:size])
        assert_refused(vm(tmp_path / "image", "true"), 125, "image")

    def test_damaged_superblock(self, tmp_path: Path) -> None:
        content = bytearray(root_image("busybox").read_bytes())
        for field in (36, 38, 40, 60, 200):  # blocks, metadata, identity; the checksum disagrees
            damaged = bytearray(content)
            damaged[SUPERBLOCK_OFFSET + field] ^= 0x55
            (tmp_path / "image").write_bytes(damaged)
            assert_refused(vm(tmp_path / "image", "true"), 125, "image", "is damaged", "superblock")

    def test_no_such_program(self) -> None:
        assert_refused(vm(root_image("busybox"), "nonsense"), 127, "nonsense")
        assert_refused(vm(root_image("busybox"), "/bin/nonsense"), 127, "/bin/nonsense")

    def test_not_executable(self) -> None:
        assert_refused(
            vm(root_image("busybox"), "/etc/passwd"), 126, "/etc/passwd", "permission denied"
        )
        assert_refused(vm(root_image("busybox"), "/etc"), 126, "/etc")

    def test_no_program_format(self, tmp_path: Path) -> None:
        image = image_with(tmp_path, "bin/odd", b"neither ELF nor script")
        assert_refused(vm(image, "odd"), 126, "exec format error")

    @pytest.mark.parametrize(("offset", "value"), [(18, 183), (4, 1), (5, 2), (16, 1)])
    def test_wrong_elf(self, tmp_path: Path, offset: int, value: int) -> None:
        """Another machine, 32 bits, big-endian, no executable."""
        program = bytearray((make_root("busybox") / "usr/bin/busybox").read_bytes())
        program[offset] = value
        image = image_with(tmp_path, "bin/odd", bytes(program))
        assert_refused(vm(image, "odd"), 126, "exec format error")

    def test_truncated_program(self, tmp_path: Path) -> None:
        """Cut off at any place it ends as natively."""
        static = (make_root("programs") / "usr/bin/true").read_bytes()
        dynamic = (make_root("python") / "usr/bin/python3.11").read_bytes()
        tree = tmp_path / "tree"
        (tree / "bin").mkdir(parents=True)
        names = []
        for name, program in (("static", static), ("dynamic", dynamic)):
            headers = 64 + 56 * struct.unpack_from("<H", program, 56)[0]
            cuts = (63, 64, headers - 1, headers, headers + 40, 4096, len(program) // 2)
            for cut in cuts:
                path = tree / f"bin/{name}{cut}"
                path.write_bytes(program[:cut])
                path.chmod(0o755)
                names.append(path.name)
        make_erofs(tree, tmp_path / "image.erofs")
        for name in names:
            try:
                done = subprocess.run([tree / "bin" / name], check=False, capture_output=True)
                native = 128 - done.returncode if done.returncode < 0 else done.returncode
            except OSError:
                native = 126
            result = vm(tmp_path / "image.erofs", name)
            assert result.status == native, (name, native, result)

    def test_missing_interpreter(self, tmp_path: Path) -> None:
        image = image_with(tmp_path, "bin/script", b"#!/bin/missing\n")
        assert_refused(vm(image, "script"), 127, "script")

    def test_missing_dynamic_loader(self, tmp_path: Path) -> None:
        program = (make_root("python") / "usr/bin/python3.11").read_bytes()
        image = image_with(tmp_path, "bin/dynamic", program)
        assert_refused(vm(image, "dynamic"), 127, "dynamic", "no such file")

    def test_script_that_calls_itself(self, tmp_path: Path) -> None:
        image = image_with(tmp_path, "bin/loop", b"#!/bin/loop\n")
        assert_refused(vm(image, "loop"), 126, "loop")

    def test_working_directory_that_is_a_file(self) -> None:
        result = vm("--workdir", "/etc/passwd", root_image("busybox"), "true")
        assert_refused(result, 126, "/etc/passwd", "not a directory")

    def test_too_many_arguments(self) -> None:
        """As many as execve(2) takes, with a program that has 2 MiB for them."""
        program = ("sh", "-c", 'echo "$*" | wc -c', "sh", *["x" * 100_000] * 20)
        assert vm(root_image("busybox"), *program) == Result(0, b"2000020\n", b"")
        assert run_native("busybox", *program) == Result(0, b"2000020\n", b"")

    @pytest.mark.parametrize("stack", ["8192", "unlimited"])
    @pytest.mark.parametrize("variables", [["x" * 128_000] * 17, ["x" * 131_070]])
    def test_too_large_an_environment(
        self, tmp_path: Path, stack: str, variables: list[str]
    ) -> None:
        """With more than execve(2) passes on here, and with what only the VM has no room for."""
        lines = [f"{number:x}={value}" for number, value in enumerate(variables)]
        (tmp_path / "env").write_text("".join(f"{line}\n" for line in lines))
        run = f"ulimit -s {stack} && exec {TORPOR} vm run --env-file {tmp_path}/env"
        result = run_command(["sh", "-c", f"{run} {root_image('busybox')} true"])
        assert_refused(result, 125, "environment", "standard input or the image")

    def test_damaged_root_directory(self, tmp_path: Path) -> None:
        content = image_without_checksum()
        root, meta = struct.unpack_from("<H24xI", content, SUPERBLOCK_OFFSET + 14)
        inode = (meta << 12) + 32 * root
        content[inode : inode + 32] = bytes(32)
        (tmp_path / "image").write_bytes(content)
        assert_refused(vm(tmp_path / "image", "true"), 125, str(tmp_path / "image"), "damaged")

    @pytest.mark.parametrize("victim", ["usr", "usr/bin", "usr/bin/busybox"])
    @pytest.mark.parametrize("what", ["type", "size", "place", "layout"])
    def test_damaged_inode_on_the_way_to_the_program(
        self, tmp_path: Path, victim: str, what: str
    ) -> None:
        """The image is to blame, not the program that can't be found or crashes."""
        content = image_without_checksum()
        inode = inode_offset(content, victim)
        extended = content[inode] & 1
        match what:
            case "type":
                content[inode + 4 : inode + 6] = bytes(2)
            case "size" if extended:
                content[inode + 8 : inode + 16] = b"\xff" * 8
            case "size":
                content[inode + 8 : inode + 12] = b"\xff" * 4
            case "place":
                content[inode] &= ~(7 << 1)  # not behind the inode, whatever was before
                content[inode + 16 : inode + 20] = b"\xff" * 4
            case "layout":
                content[inode] |= 0xE
        (tmp_path / "image").write_bytes(content)
        result = vm(tmp_path / "image", "/usr/bin/busybox", "true")
        assert_refused(result, 125, str(tmp_path / "image"), "inode")

    def test_damaged_directory_entries(self, tmp_path: Path) -> None:
        original = image_without_checksum()
        inode = inode_offset(original, "usr/bin")
        (start,) = struct.unpack_from("<I", original, inode + 16)
        for at, value in ((8, 0xFFFF), (8, 13), (8, 0), (20, 0), (36, 1 << 40)):
            content = bytearray(original)
            packing = "<Q" if at % 12 == 0 else "<H"
            struct.pack_into(packing, content, (start << 12) + at, value)
            (tmp_path / "image").write_bytes(content)
            result = vm(tmp_path / "image", "busybox", "ls", "-l", "/usr/bin")
            assert result.status == 125, (at, value, result)
            error = result.stderr.decode()
            assert f"image {tmp_path / 'image'}: EROFS inode" in error, error
            assert "damaged" in error

    def test_damage_that_a_program_meets(self, tmp_path: Path) -> None:
        """The program sees EUCLEAN, as on Linux; the run has failed whatever it makes of that."""
        content = image_without_checksum()
        inode = inode_offset(content, "srv/builtins.sh")
        content[inode + 4 : inode + 6] = bytes(2)
        (tmp_path / "image").write_bytes(content)
        result = vm(tmp_path / "image", "sh", "-c", "cat /srv/builtins.sh; echo on")
        error = result.stderr.decode()
        assert (result.status, result.stdout) == (125, b"on\n")
        assert error.startswith("cat: "), error
        assert f"\ntorpor-vmm: image {tmp_path / 'image'}: EROFS inode" in error

    def test_guest_kernel_panic(self) -> None:
        """Linux's own key for it, pressed by a program: registers and a backtrace with names."""
        result = vm(root_image("busybox"), "sh", "-c", "echo up; echo c >/proc/sysrq-trigger")
        text = result.stderr.decode()
        assert (result.status, result.stdout) == (125, b"up\n"), result
        assert text.startswith("torpor-vmm: guest kernel panic: sysrq triggered crash\n")
        for part in (
            " at ",
            "rsp ",
            "rbp ",
            "r15 ",
            "system call 1",
            "sys_write",
            "handle_syscall",
        ):
            assert part in text, text

    @pytest.mark.parametrize("memory", ["1M", "0", "-5", "lots", "1000T", ""])
    def test_memory(self, memory: str) -> None:
        result = vm("--memory", memory, root_image("busybox"), "true")
        assert_refused(result, 125, "memory")

    @pytest.mark.parametrize(
        "words", [("-w", "relative"), ("-u", "nobody-here"), ("--name", "a b")]
    )
    def test_other_options(self, words: tuple[str, str]) -> None:
        assert_refused(vm(*words, root_image("busybox"), "true"), 125, words[1])

    def test_trace_file_that_cannot_be_made(self) -> None:
        assert_refused(
            vm("--trace=/missing/trace", root_image("busybox"), "true"), 125, "/missing/trace"
        )

    def test_fuzzed_elf_headers(self, tmp_path: Path) -> None:
        """Whatever the headers say, the VM process ends by itself with a status of its own."""
        original = (make_root("programs") / "usr/bin/true").read_bytes()
        chance = random.Random(1)
        tree = tmp_path / "tree"
        (tree / "bin").mkdir(parents=True)
        for number in range(FUZZ_RUNS):
            program = bytearray(original)
            for _ in range(chance.randint(1, 6)):
                at = chance.randrange(64 + 56 * 5)
                size = chance.choice([1, 2, 4, 8])
                value = chance.choice([0, 1, 0xFF, 1 << 63, chance.getrandbits(64)])
                program[at : at + size] = struct.pack("<Q", value)[:size]
            (tree / f"bin/f{number}").write_bytes(program)
            (tree / f"bin/f{number}").chmod(0o755)
        make_erofs(tree, tmp_path / "fuzz.erofs")
        for number in range(FUZZ_RUNS):
            result = vm(tmp_path / "fuzz.erofs", f"f{number}", timeout_s=20)
            assert result.status in (0, 125, 126, 127, 128 + 4, 128 + 7, 128 + 9, 128 + 11), result
            assert b"panic" not in result.stderr.lower(), (number, result)

    def test_fuzzed_erofs_metadata(self, tmp_path: Path) -> None:
        original = root_image("busybox").read_bytes()
        metadata_bytes = 64 << 10
        chance = random.Random(2)
        image = tmp_path / "image"
        for number in range(FUZZ_RUNS):
            content = bytearray(original)
            for _ in range(chance.randint(1, 40)):
                at = SUPERBLOCK_OFFSET + chance.randrange(metadata_bytes)
                content[at] = chance.choice([0, 0xFF, chance.getrandbits(8)])
            image.write_bytes(content)
            result = vm(image, "sh", "-c", "ls -lR / >/dev/null 2>&1; cat /etc/*", timeout_s=20)
            # Programs fail as they like with damaged bytes; the VM process does not.
            assert b"panic" not in result.stderr.lower(), (number, result)
            assert result.status in (125, 126, 127) or b"torpor" not in result.stderr, (
                number,
                result,
            )

    def test_image_that_shrinks_while_it_is_mapped(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        image.write_bytes(root_image("python").read_bytes())
        code = (
            "print('up', flush=True); import time; time.sleep(1)\n"
            "import email.message, http.client, xml.dom"
        )
        with subprocess.Popen(
            [TORPOR, "vm", "run", image, "python3", "-c", code],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            os.truncate(image, 1 << 20)
            began = time.monotonic()
            _, error = process.communicate(timeout=30)
            assert time.monotonic() - began < 30
        # The program dies of SIGBUS, or the run ends with a message.
        assert process.returncode in (1, 125, 128 + 7, 128 + 11), (process.returncode, error)


def test_the_rule_about_kvm_is_checked() -> None:
    """kvm_problem says either nothing or a reason that a person understands."""
    problem = kvm_problem()
    assert problem is None or "/dev/kvm" in problem
