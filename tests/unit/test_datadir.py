"""Which data directory is used, and how it is made."""

import os
from pathlib import Path

import pytest

from torpor import datadir
from torpor.datadir import data_dir
from torpor.errors import TorporError


def test_option_beats_environment_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datadir, "SYSTEM_DATA_DIR", tmp_path / "system")
    monkeypatch.setenv("TORPOR_DATA", str(tmp_path / "environment"))
    assert data_dir(str(tmp_path / "option")) == tmp_path / "option"
    assert data_dir(None) == tmp_path / "environment"
    monkeypatch.delenv("TORPOR_DATA")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert data_dir(None) == tmp_path / "system"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert data_dir(None) == tmp_path / "xdg" / "torpor"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_dir(None) == tmp_path / "home" / ".local" / "share" / "torpor"


def test_made_private(tmp_path: Path) -> None:
    assert data_dir(str(tmp_path / "a" / "b")).stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TorporError, match=f"cannot make the data directory {tmp_path}/file"):
        data_dir(str(tmp_path / "file"))
