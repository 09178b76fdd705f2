"""`torpor vm run`: find the image, put the command line together, and become `torpor-vmm run`.

Parsed by hand from one table, as the whole command costs less than importing an option parser.
"""

import errno
import os
import sys
from pathlib import Path

from torpor.errors import ImageNotFoundError, TorporError, UsageError


class _Option:
    """An option's names, the long one last, and what it takes."""

    # No dataclasses in this module: importing them costs a quarter of the whole command.
    __slots__ = ("help", "names", "value", "value_optional")

    def __init__(
        self, names: tuple[str, ...], value: str, help_text: str, value_optional: bool = False
    ) -> None:
        self.names = names
        self.value = value  # what stands for the value in the help text; "" if there is none
        self.help = help_text
        self.value_optional = value_optional  # then it is given as --name=VALUE only


_OPTIONS = (
    _Option(("-i", "--interactive"), "", "connect standard input"),
    _Option(("-t", "--tty"), "", "give the program a terminal"),
    _Option(("--trace",), "FILE", "print system calls as strace does (to FILE)", True),
    _Option(("--no-rewrite",), "", "leave system call instructions as they are"),
    _Option(("-m", "--memory"), "SIZE", "memory of the VM, as 256M or 2G (default 256M)"),
    _Option(("-e", "--env"), "K=V", "set a variable; K alone takes it from here"),
    _Option(("--env-file",), "FILE", "variables from a file, one K=V or K in a line"),
    _Option(("-w", "--workdir"), "DIR", "working directory in the VM"),
    _Option(("-u", "--user"), "UID:GID", "user, and group, by number or by name in the image"),
    _Option(("--entrypoint",), "E", "program in place of the image's entry point"),
    _Option(("--name",), "NAME", "name and host name of the VM"),
    _Option(("-p", "--publish"), "[ADDR:]HOST:GUEST", "publish a port (/udp for UDP)"),
    _Option(("--egress",), "SCOPE", "own connections to: none, public (default), private"),
    _Option(("--egress-allow",), "CIDR", "a network that may be reached besides"),
    _Option(("--egress-deny",), "CIDR", "a network that may not be reached"),
    _Option(("--rm",), "", "accepted, as by docker: nothing stays of a VM anyway"),
    _Option(("--init",), "", "accepted, as by docker: process 1 is always an init"),
    _Option(("--vsock",), "PATH", "Unix socket for the program's vsock"),
    _Option(("--data",), "DIR", "data directory (else TORPOR_DATA, else the default)"),
    _Option(("-h", "--help"), "", "print this help"),
)
_BY_NAME = {name: option for option in _OPTIONS for name in option.names}

# What `docker run` has and people type, and what to do instead.
_INSTEAD = {
    "-d": "it runs in the foreground; use your shell's &, or `torpor deploy`",
    "--detach": "it runs in the foreground; use your shell's &, or `torpor deploy`",
    "-v": "nothing of the host can be mounted; put files into the image",
    "--volume": "nothing of the host can be mounted; put files into the image",
    "--mount": "nothing of the host can be mounted; put files into the image",
    "--hostname": "--name gives the host name too",
    "--network": "use --egress, --egress-allow and --publish",
    "--net": "use --egress, --egress-allow and --publish",
}


class _CommandLine:
    """What was typed. `options` is keyed by an option's long name."""

    __slots__ = ("argv", "image", "options")

    def __init__(self) -> None:
        self.options: dict[str, list[str]] = {}
        self.image = ""
        self.argv: list[str] = []

    def last(self, name: str) -> str | None:
        values = self.options.get(name)
        return values[-1] if values else None


class _Program:
    """An image file and what its configuration says about the program in it."""

    __slots__ = ("cmd", "digest", "entrypoint", "env", "image", "user", "workdir")

    def __init__(
        self,
        image: Path,
        entrypoint: tuple[str, ...] = (),
        cmd: tuple[str, ...] = (),
        env: tuple[str, ...] = (),
        workdir: str = "",
        user: str = "",
        digest: str = "",
    ) -> None:
        self.image = image
        self.digest = digest  # of a stored image
        self.entrypoint = entrypoint
        self.cmd = cmd
        self.env = env
        self.workdir = workdir
        self.user = user


def vm_run(args: list[str]) -> int:
    """Run `args`, the words behind `vm run`. Returns only after --help; raises TorporError."""
    line = _parse(args)
    if "--help" in line.options:
        sys.stdout.write(_help())
        return 0
    machine = os.uname().machine
    if machine != "x86_64":
        raise TorporError(f"this machine is {machine}: microVMs need an x86-64 machine")
    program = _find_program(line.image, line.last("--data"))
    arguments = _vmm_arguments(line, program)
    name = line.last("--name")
    if name is not None:
        arguments[1:1] = _named(name, line, program)
    return become_vmm(arguments, "--interactive" in line.options)


def _parse(args: list[str]) -> _CommandLine:
    """Options up to the first word that is none; that is the image, and the rest is the program's.

    Raises UsageError, whose message names the word that is wrong.
    """
    line = _CommandLine()
    words = list(reversed(args))
    while words and words[-1].startswith("-") and words[-1] != "-":
        word = words.pop()
        if word == "--":
            break
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not word.startswith("--") and len(word) > 2:
            name = word[:2]  # -it is -i -t, -mSIZE is -m SIZE
            flag = name in _BY_NAME and not _BY_NAME[name].value
            if flag:
                words.append("-" + word[2:])
            else:
                equals, value = "=", word[2:]
        option = _BY_NAME.get(name)
        if option is None:
            instead = _INSTEAD.get(name, "see torpor vm run --help")
            raise UsageError(f"unknown option '{name}': {instead}")
        if not option.value and equals:
            raise UsageError(f"option '{name}' takes no value")
        if option.value and not equals and not option.value_optional:
            if not words:
                raise UsageError(f"option '{name}' needs a value: {name} {option.value}")
            value = words.pop()
        line.options.setdefault(option.names[-1], []).append(value)
    if words:
        line.image = words.pop()
    line.argv = words[::-1]
    if not line.image and "--help" not in line.options:
        raise UsageError("nothing to run: give an image, a directory or an EROFS file")
    return line


def _find_program(image: str, data_option: str | None) -> _Program:
    """What `image` means: a path if it holds a slash or begins with a dot, else a stored image."""
    if "/" not in image and not image.startswith("."):
        from torpor.datadir import data_dir
        from torpor.images import ImageStore

        store = ImageStore(data_dir(data_option))
        stored = store.resolve(image)
        # Kept over exec: the image is in use until torpor-vmm ends, however it ends.
        os.set_inheritable(store.hold(stored), True)
        config = stored.config
        return _Program(
            stored.erofs,
            tuple(config.entrypoint),
            tuple(config.cmd),
            tuple(config.env),
            config.workdir,
            config.user,
            stored.digest,
        )
    path = Path(image)
    if path.is_dir():
        from torpor.datadir import data_dir
        from torpor.rootdirs import packed_root

        return _Program(packed_root(path, data_dir(data_option)))
    if not os.path.lexists(path):
        raise ImageNotFoundError(
            f"no such image file or directory: {image} (a slash makes it a path; a stored image "
            "with a slash in its name is run by its digest, or by a name given by "
            "`torpor image tag`)"
        )
    return _Program(path)


def _vmm_arguments(line: _CommandLine, program: _Program) -> list[str]:
    """The words behind `torpor-vmm`. Raises UsageError if there is nothing to run."""
    entrypoint = line.last("--entrypoint")
    if entrypoint is None:
        argv = [*program.entrypoint, *(line.argv or program.cmd)]
    else:  # as with docker, the image's Cmd was meant for the image's Entrypoint
        argv = [*([entrypoint] if entrypoint else []), *line.argv]
    if not argv:
        raise UsageError(f"nothing to run: {line.image} names no program, so give one after it")

    words = ["run"]
    flags = ("-i", "-t", "--no-rewrite")
    words += [flag for flag in flags if _BY_NAME[flag].names[-1] in line.options]
    trace = line.last("--trace")
    if trace is not None:
        words.append(f"--trace={trace}" if trace else "--trace")
    memory = line.last("--memory")
    if memory is not None:
        words += ["--memory", memory]
    for option in ("--publish", "--egress", "--egress-allow", "--egress-deny", "--vsock"):
        for value in line.options.get(option, []):
            words += [option, value]
    asked = [*_from_files(line.options.get("--env-file", [])), *line.options.get("--env", [])]
    for variable in _environment(program.env, asked):
        words += ["--env", variable]
    for option, default in (("--workdir", program.workdir), ("--user", program.user)):
        value = line.last(option) or default
        if value:
            words += [option, value]
    name = line.last("--name")
    if name is not None:
        words += ["--name", name]
    return [*words, "--image", str(program.image), "--", *argv]


def _from_files(files: list[str]) -> list[str]:
    """The variables in files as docker reads them: K=V or K, no quotes, `#` begins a comment line.

    Raises UsageError for a line that is neither, OSError.
    """
    words = []
    for name in files:
        for line in Path(name).read_text("utf-8-sig", "surrogateescape").splitlines():
            word = line.lstrip()
            if not word or word.startswith("#"):
                continue
            key = word.partition("=")[0]
            if not key or any(c.isspace() for c in key):
                raise UsageError(f"--env-file {name}: '{word}' is neither K=V nor K")
            words.append(word)
    return words


def _environment(image: tuple[str, ...], asked: list[str]) -> list[str]:
    """K=V words, each K once: the command line's over the image's.

    A bare K is taken from this process's environment; where it is not set there it stays bare,
    which unsets it in the VM, as with docker.
    """
    variables: dict[str, str | None] = {}
    for word in [*image, *asked]:
        key, equals, value = word.partition("=")
        if not key:
            raise UsageError(f"option '--env' needs K=V, not '{word}'")
        variables[key] = value if equals else os.environ.get(key)
    return [key if value is None else f"{key}={value}" for key, value in variables.items()]


def _named(name: str, line: _CommandLine, program: _Program) -> list[str]:
    """Enters the VM among those that run; options by which torpor-vmm takes commands for it."""
    import uuid

    from torpor.datadir import data_dir
    from torpor.vms.running import managed_option, new_record

    check_name(name)
    record = new_record(
        uuid=uuid.uuid4().hex,
        image=program.digest or None,
        erofs=program.image,
        command=" ".join(" ".join([line.image, *line.argv]).split())[:200],
        memory=line.last("--memory") or "256M",
        ports=line.options.get("--publish", []),
        interactive="--interactive" in line.options,
        tty="--tty" in line.options,
    )
    return managed_option(data_dir(line.last("--data")), name, record)


def check_name(name: str) -> str:
    """A VM's name, before a file is called so. Raises UsageError."""
    allowed = all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)
    if not (allowed and 0 < len(name) <= 63 and name[0].isalnum()):
        raise UsageError(
            f"--name {name!r}: at most 63 letters, digits, '_', '.' and '-', the first a letter "
            "or digit"
        )
    return name


def _check_streams(interactive: bool) -> None:
    """Refuses standard streams that can't be used, as the program in the VM would not see why.

    It has pipes or a terminal of its own there. Raises TorporError.
    """
    import fcntl

    streams = [("standard output", 1, os.O_RDONLY), ("standard error", 2, os.O_RDONLY)]
    if interactive:
        streams.append(("standard input", 0, os.O_WRONLY))
    for name, descriptor, useless in streams:
        try:
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:
            raise TorporError(f"{name} is closed: redirect it to or from /dev/null") from None
        if mode == useless:
            raise TorporError(f"{name} is not open for {'writing' if descriptor else 'reading'}")


def become_vmm(arguments: list[str], interactive: bool) -> int:
    """Replace this process by torpor-vmm. Raises TorporError if that fails; never returns."""
    import signal

    from torpor.binaries import find_binary

    _check_streams(interactive)
    vmm = find_binary("torpor-vmm")
    # Python ignores these, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(vmm, [str(vmm), *arguments])
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise TorporError(
                "arguments and environment are longer than this machine passes to a program: pass "
                "large data through standard input or the image"
            ) from error
        raise TorporError(f"cannot run {vmm}: {error.strerror}") from error


def _help() -> str:
    lines = [
        "Usage: torpor vm run [OPTIONS] IMAGE_OR_DIR [ARGV...]",
        "",
        "Run a program in a microVM in the foreground. IMAGE_OR_DIR is a path if it holds a",
        "slash or begins with a dot: a directory, taken as root file system, or an EROFS",
        "file. Anything else is NAME[:TAG] of a stored image. ARGV replaces the image's Cmd.",
        "",
        "The exit status is the program's; 128 + N if signal N ended it; 125 if no microVM",
        "could be run; 126 if the program cannot be executed; 127 if it is not there.",
        "",
        "Options:",
    ]
    for option in _OPTIONS:
        value = f"[={option.value}]" if option.value_optional else f" {option.value}".rstrip()
        lines.append(f"  {', '.join(option.names) + value:24}  {option.help}")
    return "\n".join(lines) + "\n"
