"""Image names, by the grammar that docker and every registry use (distribution/reference)."""

import re
from dataclasses import dataclass

from torpor.images.errors import ImageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME_CHARS = 200

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_DOMAIN = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::[0-9]{1,5})?\Z"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed image name. `tag` is empty only where a digest is given without one."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def canonical(self) -> str:
        """The full name: registry, path and tag or digest (the digest wins)."""
        suffix = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"{self.registry}/{self.path}{suffix}"

    @property
    def familiar(self) -> str:
        """The shortest name a person would write for it."""
        path = self.path
        if self.registry == DEFAULT_REGISTRY:
            path = path.removeprefix("library/")
        else:
            path = f"{self.registry}/{path}"
        return path + (f"@{self.digest}" if self.digest else f":{self.tag}")


def is_digest(text: str) -> bool:
    """Whether `text` is a full `sha256:` digest."""
    return _DIGEST.match(text) is not None


def parse_reference(name: str) -> Reference:
    """Parses an image name as docker would: `debian`, `ghcr.io/a/b:1`, `localhost:5000/x@sha256:…`.

    Raises ImageError that names the rule which the name breaks.
    """
    if not name or len(name) > MAX_NAME_CHARS:
        raise ImageError(f"image name {name!r}: must have 1 to {MAX_NAME_CHARS} characters")
    rest, _, digest = name.partition("@")
    if digest and not is_digest(digest):
        raise ImageError(f"image name {name!r}: the digest must be sha256: and 64 hex digits")
    if "@" in name and not digest:
        raise ImageError(f"image name {name!r}: nothing follows the @")
    head, slash, tail = rest.partition("/")
    tag = ""
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        registry, path = head, tail
    else:
        registry, path = DEFAULT_REGISTRY, rest
    if ":" in path:
        path, _, tag = path.rpartition(":")
        if _TAG.match(tag) is None:
            raise ImageError(
                f"image name {name!r}: tag {tag!r} must be up to 128 letters, digits, '_', '.' "
                "or '-', and not begin with '.' or '-'"
            )
    if registry == DEFAULT_REGISTRY and path and "/" not in path:
        path = f"library/{path}"
    if _DOMAIN.match(registry) is None:
        raise ImageError(f"image name {name!r}: {registry!r} is no host name")
    if _PATH.match(path) is None:
        raise ImageError(
            f"image name {name!r}: the part before the tag must be lower-case letters and digits, "
            "separated by '/', '.', '_' or '-'"
        )
    return Reference(registry, path, tag or ("" if digest else DEFAULT_TAG), digest)
