"""Reading images in skopeo's `dir:` format: what is described there is checked before it is used.

manifest.json     OCI image manifest v1, or docker manifest version 2 schema 2
HEX               each blob by the digest that the manifest gives it
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torpor.images.config import MAX_CONFIG_BYTES, ImageConfig, parse_config, with_history
from torpor.images.convert import Layer
from torpor.images.errors import BadArchiveError
from torpor.images.limits import Limits
from torpor.images.names import is_digest
from torpor.images.store import file_digest

MAX_MANIFEST_BYTES = 4 << 20
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER_TYPE = re.compile(
    r"application/vnd\.oci\.image\.layer\.v1\.tar(?:\+(?:gzip|zstd))?|"
    r"application/vnd\.docker\.image\.rootfs\.diff\.tar(?:\.gzip|\.zstd)?"
)


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image as it lies in a directory."""

    layers: tuple[Layer, ...]
    config: ImageConfig
    manifest_digest: str
    config_digest: str


def read_dir_image(directory: Path, origin: str, limits: Limits) -> OciImage:
    """Reads manifest and configuration and checks their types, digests, platform and layer count.

    The layers' own digests are checked while they are read. Raises BadArchiveError.
    """
    path = directory / "manifest.json"
    manifest = _object(
        _read(path, MAX_MANIFEST_BYTES, f"{origin}: manifest"), f"{origin}: manifest"
    )
    media_type = manifest.get("mediaType") or _MANIFEST_TYPES[0]
    if media_type not in _MANIFEST_TYPES or manifest.get("schemaVersion") != 2:
        raise BadArchiveError(f"{origin}: manifest of unknown media type {_shown(media_type)}")
    config_path, config_digest = _blob(directory, manifest.get("config"), _CONFIG_TYPES, origin)
    raw_config = _read(config_path, MAX_CONFIG_BYTES, f"{origin}: configuration")
    if file_digest(config_path) != config_digest:
        raise BadArchiveError(f"{origin}: the configuration's digest is not {config_digest}")
    document = _object(raw_config, f"{origin}: configuration")
    platform = (document.get("os") or "linux", document.get("architecture") or "amd64")
    if platform != ("linux", "amd64"):
        raise BadArchiveError(
            f"{origin}: image for {_shown(platform[0])}/{_shown(platform[1])}; "
            "only linux/amd64 runs here"
        )
    descriptors = manifest.get("layers")
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(descriptors, list) or not isinstance(diff_ids, list):
        raise BadArchiveError(f"{origin}: manifest without layers or configuration without rootfs")
    if len(descriptors) != len(diff_ids) or len(descriptors) > limits.max_layers:
        raise BadArchiveError(
            f"{origin}: {len(descriptors)} layers in the manifest and {len(diff_ids)} in the "
            f"configuration; must be as many, and no more than {limits.max_layers}"
        )
    layers = []
    for number, (descriptor, diff_id) in enumerate(zip(descriptors, diff_ids, strict=True), 1):
        layer_origin = f"{origin}: layer {number} of {len(descriptors)}"
        if not isinstance(diff_id, str) or not is_digest(diff_id):
            raise BadArchiveError(f"{layer_origin}: diff_id {_shown(diff_id)} is no sha256 digest")
        blob, digest = _blob(directory, descriptor, None, layer_origin)
        layers.append(Layer(blob, layer_origin, digest, diff_id))
    config = parse_config(document.get("config"), f"{origin}: configuration")
    config = with_history(config, document.get("history"))
    return OciImage(tuple(layers), config, file_digest(path), config_digest)


def _blob(
    directory: Path, descriptor: object, types: tuple[str, ...] | None, origin: str
) -> tuple[Path, str]:
    if not isinstance(descriptor, dict):
        raise BadArchiveError(f"{origin}: a descriptor must be a JSON object")
    media_type = descriptor.get("mediaType")
    digest = descriptor.get("digest")
    known = (
        media_type in types
        if types is not None
        else isinstance(media_type, str) and _LAYER_TYPE.fullmatch(media_type) is not None
    )
    if not known:
        raise BadArchiveError(f"{origin}: unknown media type {_shown(media_type)}")
    if not isinstance(digest, str) or not is_digest(digest):
        raise BadArchiveError(f"{origin}: {_shown(digest)} is no sha256 digest")
    path = directory / digest.removeprefix("sha256:")
    if not path.is_file() or path.is_symlink():
        raise BadArchiveError(f"{origin}: blob {digest} is missing")
    size_bytes = path.stat().st_size
    if size_bytes != descriptor.get("size"):
        raise BadArchiveError(
            f"{origin}: blob {digest} has {size_bytes} bytes, not {_shown(descriptor.get('size'))}"
        )
    return path, digest


def _read(path: Path, max_bytes: int, origin: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BadArchiveError(f"{origin}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise BadArchiveError(f"{origin}: larger than {max_bytes:,} bytes")
    return content


def _object(content: bytes, origin: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadArchiveError(f"{origin}: no valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadArchiveError(f"{origin}: must be a JSON object")
    return document


def _shown(value: object) -> str:
    return repr(value)[:100]
