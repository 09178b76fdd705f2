import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.images.errors import ImageError
from torpor.images.names import parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "canonical", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("oven/bun:1", "docker.io/oven/bun:1", "oven/bun:1"),
        ("docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("localhost/x:1", "localhost/x:1", "localhost/x:1"),
        ("ghcr.io/a/b/c:v1.2_3", "ghcr.io/a/b/c:v1.2_3", "ghcr.io/a/b/c:v1.2_3"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"debian:12@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
    ],
)
def test_names_are_read_as_docker_reads_them(name: str, canonical: str, familiar: str) -> None:
    reference = parse_reference(name)
    assert (reference.canonical, reference.familiar) == (canonical, familiar)
    assert parse_reference(reference.canonical) == parse_reference(reference.familiar)


@pytest.mark.parametrize(
    "name",
    [
        "", "Debian", "a b", "a:", "a/", "/a", "a//b", "../a", "a/../b", "a:.b", "a@sha256:12",
        "a@", "-a", "a" * 300, "a\n", "a:b\n", "host:99999999/a", "a\0b",
    ],
)  # fmt: skip
def test_wrong_names_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="image name"):
        parse_reference(name)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_an_error(name: str) -> None:
    try:
        reference = parse_reference(name)
    except ImageError:
        return
    assert ".." not in reference.canonical.split("/")
    assert parse_reference(reference.canonical).canonical == reference.canonical
