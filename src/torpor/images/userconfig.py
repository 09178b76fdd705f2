"""The user's package manager configuration, for RUN steps alone.

A Dockerfile's `pip install` should find the index that the user's own does, yet neither the image
nor its digest, nor the build cache's keys, may depend on it. So the configuration is written to a
directory that is mounted into RUN steps and left out of the image, and the variables that point
there have the same values on every machine. Proxy variables are passed by buildah itself.

The Dockerfile's own settings win: pip's and npm's variables and project files beat these files.
"""

import configparser
import itertools
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torpor.images.convert import BUILD_MOUNT
from torpor.images.tools import run_tool

_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
)
_GO_VARIABLES = (
    "GOPROXY",
    "GONOPROXY",
    "GOPRIVATE",
    "GOSUMDB",
    "GONOSUMDB",
    "GONOSUMCHECK",
    "GOINSECURE",
    "GOVCS",
)
_NPM_CA = re.compile(r"cafile\s*=\s*(.+)\Z")
_APT_OPTION = re.compile(
    r"Acquire::(?:(?:https?|ftp|socks)::(?!Proxy-Auto-Detect)|Check-Date|Check-Valid-Until|"
    r"Allow|Retries|ForceIPv|Max-|Min-|By-Hash|Queue-)"
)
_SECRET_URL = re.compile(r"//[^/@]+@")


def write_user_config(directory: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Writes the user's pip, npm, Go and apt configuration below `directory` (new, mode 0700).

    Returns the variables that make RUN steps use it when it is mounted at BUILD_MOUNT. Which ones
    there are depends on what kinds of certificates and registries are configured, their values
    hardly ever: only a registry for bun, which reads no file of npm's.
    """
    directory.mkdir(mode=0o755)  # RUN steps of other users read it; its parent is private
    writer = _Writer(directory, env)
    variables = {
        "PIP_CONFIG_FILE": writer.pip(),
        "NPM_CONFIG_GLOBALCONFIG": writer.npm(),
        "GOENV": writer.go(),
        "APT_CONFIG": writer.apt(),
    }
    for name in _CA_VARIABLES:
        bundle = writer.certificates(env.get(name, ""))
        if bundle:
            variables[name] = bundle
    if writer.npm_registry and not _SECRET_URL.search(writer.npm_registry):
        variables["BUN_CONFIG_REGISTRY"] = writer.npm_registry
    return variables


def apt_options() -> list[str]:
    """This machine's acquisition settings of apt that are set, as lines of its configuration."""
    if not shutil.which("apt-config"):
        return []
    lines = run_tool(["apt-config", "dump"]).output.splitlines()
    return [line for line in lines if _APT_OPTION.match(line) and not line.endswith(' "";')]


class _Writer:
    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._directory = directory
        self._env = env
        self._home = Path(env.get("HOME") or "/root")
        self.npm_registry = ""

    def _write(self, name: str, content: str) -> str:
        path = self._directory / name
        path.write_text(content)
        path.chmod(0o644)
        return f"{BUILD_MOUNT}/{name}"

    def certificates(self, source: str) -> str:
        """Copies a certificate file and returns where a RUN step finds it; empty without one."""
        path = Path(source)
        if not source or not path.is_file():
            return ""
        # Equal for equal content of several variables; the name says nothing of this machine.
        content = path.read_bytes()
        for number in itertools.count(1):
            name = "ca.pem" if number == 1 else f"ca-{number}.pem"
            target = self._directory / name
            if not target.exists():
                target.write_bytes(content)
                target.chmod(0o644)
            if target.read_bytes() == content:
                break
        return f"{BUILD_MOUNT}/{name}"

    def pip(self) -> str:
        """pip.conf: the site's, then the user's, then PIP_ variables, each over the one before."""
        xdg = Path(self._env.get("XDG_CONFIG_HOME") or self._home / ".config")
        files = [
            Path("/etc/xdg/pip/pip.conf"),
            Path("/etc/pip.conf"),
            self._home / ".pip/pip.conf",
            xdg / "pip/pip.conf",
        ]
        if self._env.get("PIP_CONFIG_FILE"):
            files.append(Path(self._env["PIP_CONFIG_FILE"]))
        merged = configparser.RawConfigParser()
        for file in files:
            with suppress(configparser.Error, UnicodeDecodeError):
                merged.read(file)
        options = {
            name.removeprefix("PIP_").lower().replace("_", "-"): value
            for name, value in self._env.items()
            if name.startswith("PIP_") and name not in ("PIP_CONFIG_FILE", "PIP_REQUIRE_VIRTUALENV")
        }
        if options and not merged.has_section("global"):
            merged.add_section("global")
        for name, value in options.items():
            merged.set("global", name, value)
        for section in merged.sections():
            self._fit_pip_paths(merged, section)
        path = self._directory / "pip.conf"
        with path.open("w") as pip_conf:
            merged.write(pip_conf)
        path.chmod(0o644)
        return f"{BUILD_MOUNT}/pip.conf"

    def _fit_pip_paths(self, merged: configparser.RawConfigParser, section: str) -> None:
        if merged.has_option(section, "cert"):
            merged.set(section, "cert", self.certificates(merged.get(section, "cert")))
        if not merged.get(section, "cert", fallback="x"):
            merged.remove_option(section, "cert")
        # What names other places of this machine has no meaning in a RUN step.
        for option in ("cache-dir", "target", "prefix", "root", "log", "src", "client-cert"):
            merged.remove_option(section, option)
        if merged.has_option(section, "find-links"):
            links = merged.get(section, "find-links").split()
            remote = [link for link in links if "://" in link and not link.startswith("file:")]
            merged.remove_option(section, "find-links")
            if remote:
                merged.set(section, "find-links", " ".join(remote))

    def npm(self) -> str:
        """npmrc: npm's global one, then the user's, then npm_config_ variables; later ones win."""
        files = [
            Path("/etc/npmrc"),
            Path("/usr/etc/npmrc"),
            Path("/usr/local/etc/npmrc"),
            Path(self._env.get("NPM_CONFIG_USERCONFIG") or self._home / ".npmrc"),
        ]
        lines: list[str] = []
        for file in files:
            with suppress(OSError, UnicodeDecodeError):
                lines += file.read_text().splitlines()
        for name, value in self._env.items():
            if name.lower().startswith("npm_config_") and "config" not in name.lower()[11:]:
                lines.append(
                    f"{name.lower().removeprefix('npm_config_').replace('_', '-')}={value}"
                )
        kept = []
        for line in lines:
            key, _, value = (part.strip() for part in line.partition("="))
            match = _NPM_CA.match(line.strip())
            if match is not None:
                bundle = self.certificates(match[1].strip().strip("\"'"))
                if bundle:
                    kept.append(f"cafile={bundle}")
            elif key in ("prefix", "cache", "nodedir", "tmp", "globalconfig", "userconfig"):
                continue
            else:
                kept.append(line)
                if key == "registry":
                    self.npm_registry = value.strip("\"'")
        return self._write("npmrc", "\n".join(kept) + "\n")

    def go(self) -> str:
        """Go's environment file, which `go env -w` in a RUN step may change for that build."""
        config = Path(self._env.get("XDG_CONFIG_HOME") or self._home / ".config")
        file = Path(self._env.get("GOENV") or config / "go/env")
        values: dict[str, str] = {}
        with suppress(OSError, UnicodeDecodeError):
            for line in file.read_text().splitlines():
                name, equals, value = line.partition("=")
                if equals and name in _GO_VARIABLES:
                    values[name] = value
        values.update({name: self._env[name] for name in _GO_VARIABLES if self._env.get(name)})
        return self._write("go.env", "".join(f"{name}={value}\n" for name, value in values.items()))

    def apt(self) -> str:
        """apt's acquisition settings (proxies, certificates) and its stored credentials."""
        lines = []
        for option in apt_options():
            name, _, value = option.partition(" ")
            if name.lower().endswith(("cainfo", "sslcert", "sslkey")):
                bundle = self.certificates(value.strip('";'))
                value = f'"{bundle}";' if bundle else ""
            if value:
                lines.append(f"{name} {value}")
        logins = []
        for file in (
            Path("/etc/apt/auth.conf"),
            *sorted(Path("/etc/apt/auth.conf.d").glob("*.conf")),
        ):
            with suppress(OSError, UnicodeDecodeError):
                logins.append(file.read_text())
        if logins:
            where = self._write("apt-auth.conf", "\n".join(logins))
            lines.append(f'Dir::Etc::netrc "{where}";')
        return self._write("apt.conf", "\n".join(lines) + "\n")
