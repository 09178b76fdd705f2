"""Which of its ports an image is served at."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.images.archives import Member, tar
from tests.images.conftest import AddTar
from torpor.errors import UsageError
from torpor.images import ImageConfig, ImageStore
from torpor.images.config import expose_history, the_port, with_history
from torpor.images.exporting import export_image
from torpor.images.importing import DOCKER_ARCHIVE, OCI_ARCHIVE, import_image
from torpor.images.settings import load_settings

BOTH = ImageConfig(exposed_ports=("53/udp", "80/tcp", "8080"))


@pytest.mark.parametrize(
    ("history", "port"),
    [
        (["/bin/sh -c #(nop)  EXPOSE 80", "EXPOSE 8080", "COPY . ."], 8080),
        (["EXPOSE map[8080/tcp:{}]", "EXPOSE map[80/tcp:{}]"], 80),
        (["EXPOSE [53/udp 8080/tcp]"], 8080),
        (["/bin/sh -c #(nop) EXPOSE 8080/tcp", "RUN echo EXPOSE 80"], 8080),
        (["EXPOSE 8080", "EXPOSE 80 8080"], None),
        (["EXPOSE 99"], None),
        ([], None),
    ],
)
def test_the_newest_expose_decides(history: list[str], port: int | None) -> None:
    config = with_history(BOTH, [{"created_by": text} for text in history])
    if port is not None:
        assert the_port(config, "app", "") == port
        return
    with pytest.raises(UsageError, match="app exposes ports 80, 8080: say which"):
        the_port(config, "app", "say which")


def test_one_port_needs_no_history() -> None:
    assert the_port(ImageConfig(exposed_ports=("53/udp", "81")), "app", "") == 81
    with pytest.raises(UsageError, match="app exposes no TCP port: give -p"):
        the_port(ImageConfig(exposed_ports=("53/udp",)), "app", "give -p")


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.from_regex(r"EXPOSE \\d{1,7}(/[a-z]{3})?"),
        lambda inner: st.lists(inner) | st.dictionaries(st.just("created_by") | st.text(), inner),
    )
)
def test_any_history_is_read(history: object) -> None:
    assert with_history(BOTH, history).main_port in (0, 80, 8080)


@pytest.mark.parametrize("format_", [OCI_ARCHIVE, DOCKER_ARCHIVE])
def test_it_survives_the_store_and_archives(
    store: ImageStore, add_layers: AddTar, tmp_path: Path, format_: str
) -> None:
    config = with_history(BOTH, [{"created_by": "EXPOSE 8080"}])
    assert with_history(BOTH, [expose_history(config)]) == config
    add_layers(tar([Member("a", b"1")]), config=config, tag="app")
    stored, archive = store.resolve("app"), tmp_path / "archive"
    assert stored.config.main_port == 8080
    limits = load_settings(store.data_dir)
    export_image(store, stored, archive, format_, None, limits, no_progress)
    elsewhere = ImageStore(tmp_path / "elsewhere")
    digest = import_image(elsewhere, archive, format_, "", None, limits, no_progress)
    assert elsewhere.resolve(digest).config.main_port == 8080


def no_progress(_: str) -> None:
    return
