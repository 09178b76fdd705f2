"""What RUN steps are told of the user's package managers."""

from pathlib import Path

from torpor.images.userconfig import write_user_config


def test_configuration_of_user_and_variables(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://user.example\ncache-dir = /home/x\ntimeout = 7\n"
        "[install]\nfind-links = /local https://links.example\n"
    )
    (home / ".npmrc").write_text("registry=https://npm.example/\nprefix=/home/x\n")
    (home / ".config/go").mkdir()
    (home / ".config/go/env").write_text("GOPROXY=https://go.example\nGOBIN=/home/x\n")
    env = {"HOME": str(home), "PIP_INDEX_URL": "https://variable.example", "GOSUMDB": "off"}
    variables = write_user_config(tmp_path / "out", env)
    assert variables["PIP_CONFIG_FILE"] == "/run/torpor-build/pip.conf"
    assert variables["BUN_CONFIG_REGISTRY"] == "https://npm.example/"
    pip = (tmp_path / "out/pip.conf").read_text()
    assert "index-url = https://variable.example" in pip
    assert "timeout = 7" in pip
    assert "find-links = https://links.example" in pip
    npm = (tmp_path / "out/npmrc").read_text()
    go = (tmp_path / "out/go.env").read_text()
    assert "registry=https://npm.example/" in npm
    assert go == "GOPROXY=https://go.example\nGOSUMDB=off\n"
    for content in (pip, npm, go):
        assert "/home/x" not in content


def test_a_registry_with_a_login_stays_out_of_variables(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").write_text("registry=https://user:secret@npm.example/\n")
    variables = write_user_config(tmp_path / "out", {"HOME": str(tmp_path)})
    assert "BUN_CONFIG_REGISTRY" not in variables
    assert "secret" not in str(variables)


def test_every_certificate_is_kept_once(tmp_path: Path) -> None:
    names = [
        "SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
        "GIT_SSL_CAINFO",
    ]  # fmt: skip
    env = {"HOME": str(tmp_path)}
    for name, content in zip(names, "abcda", strict=True):
        (tmp_path / name).write_text(content)
        env[name] = str(tmp_path / name)
    env["PIP_CERT"] = env["CURL_CA_BUNDLE"]
    variables = write_user_config(tmp_path / "out", env)
    contents = [
        (tmp_path / "out" / variables[name].rpartition("/")[2]).read_text() for name in names
    ]
    assert "".join(contents) == "abcda"
    assert variables["SSL_CERT_FILE"] == variables["GIT_SSL_CAINFO"]
    assert f"cert = {variables['CURL_CA_BUNDLE']}" in (tmp_path / "out/pip.conf").read_text()
    assert "SSL_CERT_FILE" not in write_user_config(
        tmp_path / "none", {"HOME": str(tmp_path), "SSL_CERT_FILE": "/missing"}
    )
