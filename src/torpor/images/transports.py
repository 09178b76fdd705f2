"""Moving images between registries, archives and directories with skopeo.

skopeo speaks the registries' protocol and the archives' formats; here it only ever writes its
`dir:` format (manifest, configuration and layers as files), which `oci` reads, or reads it. What
it may not do by itself is bounded here: time without progress, size of what it writes.
"""

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torpor.images.errors import (
    BadArchiveError,
    ImageError,
    LimitExceededError,
    RegistryError,
    RegistryUnreachableError,
)
from torpor.images.names import DEFAULT_REGISTRY, Reference
from torpor.images.settings import ImageSettings
from torpor.images.tools import raise_if_disk_full, run_tool

_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
# What Go's network stack and skopeo say when a registry was not reached or not able to answer.
_UNREACHABLE = re.compile(
    r"dial tcp|no such host|connection refused|connection reset|i/o timeout|TLS handshake|"
    r"deadline exceeded|network is unreachable|no route to host|unexpected EOF|: EOF|"
    r"toomanyrequests|too many requests|"
    r"(?:StatusCode|status code|status code from registry)[: ]+(?:429|5\d\d)|"
    r"unexpected HTTP status: (?:429|5\d\d)|\b50[0234] (?:Internal|Bad|Service|Gateway)",
    re.IGNORECASE,
)
_LEVEL = re.compile(r'^time="[^"]*" level=(\w+) msg="(.*)"$')
_LOOPBACK = re.compile(r"(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])(?::\d+)?\Z")


@dataclass(frozen=True, slots=True)
class Access:
    """How a registry is spoken to."""

    credentials: str = ""
    """USER:PASSWORD; empty to use what `docker login` and the like have stored."""
    authfile: Path | None = None
    insecure: bool = False
    """Accept plain HTTP and unknown certificates. Loopback registries are spoken to so anyway."""


ANONYMOUS = Access()


class Skopeo:
    """Runs skopeo with its files in `scratch`, a directory of this operation alone."""

    def __init__(
        self,
        scratch: Path,
        settings: ImageSettings,
        access: Access = ANONYMOUS,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._scratch = scratch / "skopeo"
        self._settings = settings
        self._access = access
        self._base_env = env
        self._scratch.mkdir(mode=0o700, exist_ok=True)

    def fetch(self, reference: Reference, target: str, watch: Path) -> None:
        """Copies an image for linux/amd64 from its registry, a mirror first if one is set.

        `target` is a skopeo transport and `watch` the directory that grows meanwhile.
        """
        name = f"{reference.registry}/{reference.path}"
        suffix = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
        self._copy(
            [*self._tls("src", reference), f"docker://{name}{suffix}", target],
            reference.familiar,
            reference,
            watch,
        )

    def send(self, source: str, reference: Reference) -> None:
        """Copies an image in `dir:` format to a registry."""
        target = f"docker://{reference.canonical}"
        self._copy(
            [*self._tls("dest", reference), source, target],
            reference.familiar,
            reference,
            self._scratch,
        )

    def convert(self, source: str, target: str, origin: str, watch: Path) -> None:
        """Copies between archives and directories on this machine."""
        self._copy([source, target], origin, None, watch)

    def _tls(self, side: str, reference: Reference) -> list[str]:
        loopback = _LOOPBACK.match(reference.registry) is not None
        return [f"--{side}-tls-verify=false"] if self._access.insecure or loopback else []

    def _copy(
        self, arguments: list[str], origin: str, remote: Reference | None, watch: Path
    ) -> None:
        command = ["skopeo", "--override-os=linux", "--override-arch=amd64"]
        command += [f"--policy={self._file('policy.json', json.dumps(_POLICY))}"]
        registries = mirror_configuration(self._settings.mirror)
        if registries:
            command += [f"--registries-conf={self._file('registries.conf', registries)}"]
        command += [f"--tmpdir={self._scratch}", "copy"]
        authfile = self._authfile(remote) if remote is not None else None
        if authfile is not None:
            command += [f"--authfile={authfile}"]
        try:
            finished = run_tool(
                [*command, *arguments],
                env=self._env(),
                watch=watch,
                stall_s=self._settings.stall_s,
                max_file_bytes=self._settings.limits.max_bytes,
            )
        except RegistryUnreachableError as error:
            if remote is None:
                raise ImageError(f"{origin}: reading it made no progress: {error}") from error
            raise RegistryUnreachableError(
                f"{origin}: registry {remote.registry} stalls: {error}"
            ) from error
        if finished.status != 0:
            raise_if_disk_full(finished)
            raise self._error(finished.output, origin, remote)

    def _error(self, output: str, origin: str, remote: Reference | None) -> ImageError:
        said = skopeo_message(output)
        if "file too large" in said:
            return LimitExceededError(
                f"{origin}: a layer has more than {self._settings.limits.max_bytes:,} bytes; "
                "set max_bytes in [images] of config.toml if that is meant"
            )
        if remote is None:
            return BadArchiveError(f"{origin}: {said}")
        if _UNREACHABLE.search(said):
            return RegistryUnreachableError(
                f"{origin}: registry {remote.registry} can't be reached: {said}"
            )
        return RegistryError(f"{origin}: registry {remote.registry}: {said}")

    def _env(self) -> dict[str, str]:
        return {**self._base_env, "TMPDIR": os.fspath(self._scratch)}

    def _authfile(self, remote: Reference) -> Path | None:
        if self._access.credentials:
            encoded = base64.b64encode(self._access.credentials.encode()).decode()
            server = remote.registry
            if server == DEFAULT_REGISTRY:
                server = "https://index.docker.io/v1/"
            # A file, as every user of the machine can read a command line.
            return self._file("auth.json", json.dumps({"auths": {server: {"auth": encoded}}}))
        return self._access.authfile

    def _file(self, name: str, content: str) -> Path:
        path = self._scratch / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        return path


def mirror_configuration(mirror: str) -> str:
    """A registries.conf that asks `mirror` for docker.io's images first; empty without one."""
    if not mirror:
        return ""
    scheme, separator, location = mirror.partition("://")
    if not separator:
        scheme, location = "https", mirror
    location = location.rstrip("/")
    plain = scheme == "http" or _LOOPBACK.match(location.partition("/")[0]) is not None
    if scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.:/_\[\]-]+", location):
        raise ImageError(
            f"registry mirror {mirror!r}: must be [http://]HOST[:PORT][/PREFIX]; it is set by "
            "TORPOR_REGISTRY_MIRROR or mirror in [images] of config.toml"
        )
    return (
        f'[[registry]]\nprefix = "{DEFAULT_REGISTRY}"\nlocation = "{DEFAULT_REGISTRY}"\n'
        f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = {str(plain).lower()}\n'
    )


def skopeo_message(output: str) -> str:
    """The error in what skopeo or buildah wrote, without the log's dress."""
    last = ""
    for line in output.strip().splitlines():
        match = _LEVEL.match(line)
        if match is None:
            last = line.removeprefix("Error: ")
        elif match[1] in ("fatal", "error"):
            last = match[2].replace('\\"', '"').replace("\\n", " ")
    return last or "no message"
