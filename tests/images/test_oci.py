"""Manifests and configurations: whatever JSON comes is an image or one clear error."""

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images.archives import ImageFiles, Member, digest, tar
from torpor.images.errors import BadArchiveError, ImageError
from torpor.images.limits import Limits
from torpor.images.oci import read_dir_image

CONFIG = {
    "Cmd": ["a"], "Entrypoint": ["e"], "Env": ["A=b"], "WorkingDir": "/w", "User": "1",
    "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "Volumes": {"/v": {}}, "Shell": ["s"],
    "Healthcheck": {"Test": ["NONE"], "Interval": 1, "Retries": 2}, "OnBuild": ["RUN x"],
    "StopSignal": "SIGINT",
}  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def members(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON document."""
    found = [path] if path else []
    if isinstance(document, dict):
        for key, value in document.items():
            found += members(value, (*path, key))
    elif isinstance(document, list):
        for at, value in enumerate(document):
            found += members(value, (*path, at))
    return found


def replaced(document: Any, path: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(document)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """An image in `dir:` format; its manifest and configuration."""
    files = ImageFiles.of([tar([Member("a", b"1")]), tar([Member("b")])], CONFIG)
    directory = files.write_dir(tmp_path_factory.mktemp("oci") / "image")
    return directory, files.manifest, files.config


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_json_is_an_image_or_an_error(
    image: tuple[Path, dict[str, Any], dict[str, Any]], data: st.DataObject
) -> None:
    directory, manifest, config = image
    manifest = copy.deepcopy(manifest)
    if data.draw(st.booleans(), "in the configuration"):
        path = data.draw(st.sampled_from(members(config)))
        content = json.dumps(replaced(config, path, data.draw(values))).encode()
        manifest["config"].update(digest=digest(content), size=len(content))
        (directory / digest(content).removeprefix("sha256:")).write_bytes(content)
    else:
        path = data.draw(st.sampled_from(members(manifest)))
        manifest = replaced(manifest, path, data.draw(values))
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with suppress(ImageError):
        found = read_dir_image(directory, "test", Limits())
        for word in (*found.config.argv(), *found.config.env, found.config.user):
            assert "\0" not in word.encode().decode()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_no_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BadArchiveError, match=r"test: manifest: (no valid JSON|must be)"):
        read_dir_image(tmp_path, "test", Limits())


def test_a_link_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to("/etc/passwd")
    with pytest.raises(BadArchiveError, match="test: manifest"):
        read_dir_image(tmp_path, "test", Limits())
