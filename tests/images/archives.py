"""Making of archives for tests, good ones and bad ones."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Member:
    """An entry of a tar archive, plain unless it says otherwise."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_000_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755) -> Member:
    return Member(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return Member(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> Member:
    return Member(name, type=tarfile.LNKTYPE, link=target)


def tar(members: Iterable[Member], format_: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.linkname, entry.mode = member.type, member.link, member.mode
            entry.uid, entry.gid, entry.mtime = member.uid, member.gid, member.mtime
            entry.devmajor, entry.devminor = member.device
            entry.pax_headers = dict(member.pax)
            entry.size = len(member.data)
            archive.addfile(entry, io.BytesIO(member.data))
    return out.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class ImageFiles:
    """An image to be spoiled and written: its manifest, configuration and layers."""

    manifest: dict[str, Any]
    config: dict[str, Any]
    blobs: dict[str, bytes]

    @classmethod
    def of(cls, layers: list[bytes], config: dict[str, Any] | None = None) -> "ImageFiles":
        packed = [gzip.compress(layer, mtime=0) for layer in layers]
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "size": len(layer),
                    "digest": digest(layer),
                }
                for layer in packed
            ],
        }
        return cls(manifest, document, {digest(layer): layer for layer in packed})

    def finish(self) -> bytes:
        """Fills the configuration into manifest and blobs; the manifest's bytes."""
        config = json.dumps(self.config).encode()
        self.blobs[digest(config)] = config
        self.manifest["config"].setdefault("size", len(config))
        self.manifest["config"].setdefault("digest", digest(config))
        return json.dumps(self.manifest).encode()

    def write_dir(self, target: Path) -> Path:
        """Writes skopeo's `dir:` format."""
        target.mkdir(parents=True)
        (target / "manifest.json").write_bytes(self.finish())
        (target / "version").write_text("Directory Transport Version: 1.1\n")
        for name, content in self.blobs.items():
            (target / name.removeprefix("sha256:")).write_bytes(content)
        return target

    def write_oci(self, target: Path, tag: str = "latest") -> Path:
        """Writes an OCI image layout."""
        manifest = self.finish()
        blobs = target / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for name, content in {**self.blobs, digest(manifest): manifest}.items():
            (blobs / name.removeprefix("sha256:")).write_bytes(content)
        (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entry = {
            "mediaType": self.manifest["mediaType"],
            "size": len(manifest),
            "digest": digest(manifest),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return target
