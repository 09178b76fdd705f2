"""Base images made on this machine from Debian, npm and PyPI packages.

For where no registry can be reached. debian:bookworm-slim is bootstrapped by mmdebstrap; the
others are Dockerfiles beside this module, built as any Dockerfile is.
"""

import os
from collections.abc import Callable
from pathlib import Path

from torpor.images.config import ImageConfig
from torpor.images.convert import Layer, convert, full_disk_explained
from torpor.images.errors import ImageError
from torpor.images.names import Reference, parse_reference
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore
from torpor.images.tools import raise_if_disk_full, require_root, run_tool
from torpor.images.userconfig import apt_options

RECIPES = Path(__file__).parent / "bases"
DEBIAN = "debian:bookworm-slim"
_ALIASES = {
    DEBIAN: ("debian:bookworm", "debian:12", "debian:12-slim"),
    "python:3.11-slim": ("python:3.11-slim-bookworm",),
    "node:20-slim": ("node:20-bookworm-slim",),
    "oven/bun:1": ("oven/bun:1-debian", "oven/bun:latest", "oven/bun:1-slim"),
    "golang:1-bookworm": ("golang:1", "golang:latest", "golang:bookworm"),
    "nginx:stable": ("nginx:stable-bookworm",),
    "php:8.2-cli": ("php:8.2-cli-bookworm",),
    "redis:7": ("redis:7-bookworm", "redis:7.0"),
}
NAMES = tuple(_ALIASES)
"""The base images that can be made; each under some other names too."""

_SUITES = (
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-updates"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
)
# What docker's Debian images leave out and set up, for the same reasons: size, and no services
# or interactive tools in a container.
_EXCLUDED = ("doc", "info", "man", "groff", "lintian", "linda", "locale")
_APT_CONF = """\
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
APT::AutoRemove::SuggestsImportant "false";
"""

BuildRecipe = Callable[[Path, Reference], str]


def known_base(name: str) -> str | None:
    """The name of the recipe that makes base image `name`, or None."""
    wanted = parse_reference(name)
    for base, aliases in _ALIASES.items():
        if any(parse_reference(alias) == wanted for alias in (base, *aliases)):
            return base
    return None


def make_base(
    store: ImageStore,
    name: str,
    settings: ImageSettings,
    build_recipe: BuildRecipe,
    progress: Callable[[str], None],
) -> str:
    """Makes a base image, tags it with `name`, and returns its digest.

    `build_recipe` builds a directory with a Dockerfile under a name.
    """
    base = known_base(name)
    if base is None:
        raise ImageError(f"{name}: no recipe; base images that can be made: {', '.join(NAMES)}")
    digest = store.find(base) if base != name else None
    if digest is None and base == DEBIAN:
        digest = _bootstrap(store, settings, progress)
    elif digest is None:
        digest = build_recipe(
            RECIPES / base.replace("/", "-").replace(":", "-"), parse_reference(base)
        )
    store.tag(digest, parse_reference(name))
    return digest


def _bootstrap(store: ImageStore, settings: ImageSettings, progress: Callable[[str], None]) -> str:
    require_root("making a base image")
    progress(f"bootstrapping {DEBIAN} from Debian packages")
    with store.staging() as staging, full_disk_explained(store.data_dir):
        archive = staging / "debian.tar"
        sources = staging / "sources.list"
        sources.write_text("".join(f"deb {uri} {suite} main\n" for uri, suite in _SUITES))
        (staging / "apt.conf").write_text(_APT_CONF)
        (staging / "policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (staging / "policy-rc.d").chmod(0o755)
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{directory}/*" for directory in _EXCLUDED]
        finished = run_tool(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", "--include=tzdata,usr-is-merged"),
                "--hook-directory=/usr/share/mmdebstrap/hooks/merged-usr",
                '--aptopt=APT::Install-Recommends "false"',
                *excluded,
                "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                "--dpkgopt=path-include=/usr/share/locale/locale.alias",
                *(f"--aptopt={option}" for option in apt_options()),
                f"--customize-hook=copy-in {staging}/apt.conf /etc/apt/apt.conf.d/",
                f"--customize-hook=copy-in {staging}/policy-rc.d /usr/sbin/",
                # The host's, which mmdebstrap leaves behind; a guest has its own.
                '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
                '--customize-hook=cd "$1/var" && rm -rf log/*.log log/apt cache/*/*.bin',
                *("bookworm", os.fspath(archive), os.fspath(sources)),
            ],
            env={**os.environ, "TMPDIR": os.fspath(staging)},
            on_output=progress,
        )
        if finished.status != 0:
            raise_if_disk_full(finished)
            raise ImageError(f"{DEBIAN}: mmdebstrap failed: {finished.output.strip()[-2000:]}")
        return convert(
            store,
            staging,
            [Layer(archive, DEBIAN, whiteouts=False)],
            ImageConfig(
                cmd=("bash",),
                env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
            ),
            limits=settings.limits,
            tag=parse_reference(DEBIAN),
            progress=progress,
        )
