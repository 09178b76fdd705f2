"""The server's settings: config.toml, environment, flags; and the units made of them."""

import subprocess
from pathlib import Path

import pytest

from tests.harness import REPOSITORY, TORPOR, run_command
from torpor.errors import UsageError
from torpor.settings import ServerSettings, load_server_settings


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    assert load_server_settings(tmp_path, {}) == ServerSettings()
    (tmp_path / "config.toml").write_text(
        '[server]\nlisten = "127.0.0.1:1"\ndomain_suffix = "a"\n[proxy]\nhttp = "127.0.0.1:2"\n'
        'public_ports = { 80 = 8000 }\n[vms]\nmemory_mb = 100\n[images]\nmirror = "x"\n'
    )
    env = {"TORPOR_LISTEN": "127.0.0.1:3", "TORPOR_PROXY": "127.0.0.1:4"}
    found = load_server_settings(tmp_path, env, proxy_http="127.0.0.1:5", proxy_tls=None)
    assert found.server.listen == "127.0.0.1:3"
    assert found.server.domain_suffix == "a"
    assert found.proxy.http == "127.0.0.1:5"
    assert found.vms.memory_mb == 100
    assert found.public_ports() == {80: 8000, 443: 8443}
    tls = load_server_settings(tmp_path, {}, proxy_tls="127.0.0.1:443")
    assert tls.public_ports() == {80: 8000, 443: 443}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nlisten = 1\n", "listen"),
        ("[server]\nport = 1\n", "port"),
        ('[server]\nlisten = "nowhere"\n', "HOST:PORT"),
        ('[proxy]\nhttp = "127.0.0.1:65536"\n', "HOST:PORT"),
        ('[proxy]\nhttp = "localhost:8080"\n', "ADDRESS:PORT"),
        ('[proxy]\ntls = "[::1:8443"\n', "ADDRESS:PORT"),
        ("[proxy]\npublic_ports = { 81 = 1 }\n", "80 and 443"),
        ("[vms]\nmemory_mb = -1\n", "memory_mb"),
        ("vms = 1\n", "vms"),
        ("= 1\n", "config.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        load_server_settings(tmp_path, {})


def test_what_is_wrong_is_named_as_it_was_given(tmp_path: Path) -> None:
    wrong = "127.0.0.1:99999"
    with pytest.raises(UsageError, match=r"^option '--proxy' is '127.0.0.1:99999': must be HOST:"):
        load_server_settings(tmp_path, {}, proxy_http=wrong)
    with pytest.raises(UsageError, match=r"^TORPOR_PROXY_TLS is '127.0.0.1:99999': must be HOST:"):
        load_server_settings(tmp_path, {"TORPOR_PROXY_TLS": wrong})
    (tmp_path / "config.toml").write_text(f'[server]\nlisten = "{wrong}"\n')
    with pytest.raises(UsageError, match=r"config.toml: \[server\] listen is '127.0.0.1:99999'"):
        load_server_settings(tmp_path, {})


def test_units_name_this_installation(tmp_path: Path) -> None:
    directory = tmp_path / "units"
    directory.mkdir()
    done = run_command([TORPOR, "--data", tmp_path / "data", "units", directory])
    assert done.status == 0, done
    names = {path.name for path in directory.iterdir()}
    assert names == {"torpord.service", "torpor-proxy.service", "torpor-quiesce.service"}
    proxy = (directory / "torpor-proxy.service").read_text()
    data = tmp_path / "data"
    assert f'--data "{data}" --http 127.0.0.1:8080 --tls 127.0.0.1:8443\n' in proxy
    for path in directory.iterdir():
        assert "@" not in path.read_text()


@pytest.mark.parametrize("name", ["data", "a directory for 100% of $HOME"])
def test_systemd_takes_the_units(tmp_path: Path, name: str) -> None:
    subprocess.run([REPOSITORY / "scripts" / "system-packages", "test"], check=True)
    directory = tmp_path / "units"
    directory.mkdir()
    done = run_command([TORPOR, "--data", tmp_path / name, "units", directory])
    assert done.status == 0, done
    units = sorted(directory.iterdir())
    checked = run_command(["systemd-analyze", "verify", "--man=no", *units])
    assert (checked.status, checked.stdout, checked.stderr) == (0, b"", b"")
