"""buildah and the storage that it builds in.

    cache/buildah/DRIVER/storage    layers and images, buildah's own format: a cache, removable
    cache/buildah/DRIVER/run        its run-time state
    cache/buildah/lock              flock: shared while building, exclusive while cleaning

The driver is `overlay` where the kernel can mount one there, else `vfs`, which copies the whole
tree at every step. `--isolation chroot` needs no container runtime and is no boundary.
"""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torpor.images.errors import ImageError
from torpor.images.tools import Finished, check_tool, find_tool, run_tool

_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class Buildah:
    """buildah on the build cache of one data directory; use inside `opened`."""

    def __init__(self, directory: Path, driver: str) -> None:
        self._directory = directory
        self._driver = driver
        self._root = directory / driver / "storage"
        self._run_root = directory / driver / "run"

    @classmethod
    @contextmanager
    def opened(cls, data_dir: Path) -> Iterator["Buildah"]:
        """Keeps others from cleaning the cache, after doing so where nobody else is at work."""
        directory = data_dir / "cache" / "buildah"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        find_tool("buildah")
        with (directory / "lock").open("ab") as lock:
            buildah = cls(directory, storage_driver(directory))
            buildah._file("policy.json", _POLICY)
            buildah._file("empty.conf", "")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                buildah._remove_leftovers()
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield buildah

    def transport(self, name: str) -> str:
        """How skopeo names an image of this storage."""
        return f"containers-storage:[{self._driver}@{self._root}+{self._run_root}]{name}"

    @property
    def directory(self) -> Path:
        """Everything that grows while an image is fetched into the storage."""
        return self._directory / self._driver

    def has_image(self, name: str) -> bool:
        """Whether the storage has an image of that full name."""
        return (
            run_tool(self._command("inspect", "--type", "image", name), env=self.env()).status == 0
        )

    def environment(self, name: str) -> dict[str, str]:
        """The variables that an image of this storage sets."""
        variables = self.config(name).get("Env") or ()
        return dict(variable.split("=", 1) for variable in variables if "=" in variable)

    def config(self, name: str) -> dict[str, Any]:
        """How a program of an image of this storage is started, as OCI has it."""
        words = self._command("inspect", "--type", "image", name)
        lines: list[str] = []
        finished = run_tool(words, env=self.env(), on_output=lines.append)
        if finished.status != 0:
            raise ImageError(f"the configuration of image {name}: {finished.output.strip()}")
        # What it has to complain about stands before its answer.
        document = json.loads("\n".join(lines[lines.index("{") :]))
        return dict(document["OCIv1"].get("config", {}))

    def build(
        self, arguments: Sequence[str], on_output: Callable[[str], None], *, offline: bool = False
    ) -> Finished:
        """Runs `buildah build` with the cache of layers, never fetching an image by itself.

        With `offline` its steps have no network.
        """
        options = [
            "--isolation=chroot",
            "--format=docker",
            "--layers",
            "--pull-never",
            "--force-rm",
        ]
        options += ["--identity-label=false"]
        options += [f"--signature-policy={self._directory / 'policy.json'}"]
        return run_tool(
            self._command("build", *options, *arguments),
            env=self.env(),
            on_output=on_output,
            offline=offline,
        )

    def push(self, image_id: str, target: str) -> None:
        """Writes an image to a skopeo transport, its layers uncompressed."""
        policy = f"--signature-policy={self._directory / 'policy.json'}"
        check_tool(
            self._command("push", "--quiet", policy, "--disable-compression", image_id, target),
            env=self.env(),
        )

    def env(self) -> dict[str, str]:
        """The environment for buildah and skopeo: the user's, but no configuration of theirs."""
        empty = os.fspath(self._directory / "empty.conf")
        scratch = self._directory / "tmp"
        scratch.mkdir(exist_ok=True, mode=0o700)
        return {
            **os.environ,
            "CONTAINERS_CONF": empty,
            "CONTAINERS_STORAGE_CONF": empty,
            "TMPDIR": os.fspath(scratch),
        }

    def _remove_leftovers(self) -> None:
        """Removes the working containers and files of builds that were killed."""
        if self._root.exists():
            run_tool(self._command("rm", "--all"), env=self.env())
        shutil.rmtree(self._directory / "tmp", ignore_errors=True)

    def _command(self, *arguments: str) -> list[str]:
        storage = [f"--root={self._root}", f"--runroot={self._run_root}"]
        return ["buildah", *storage, f"--storage-driver={self._driver}", *arguments]

    def _file(self, name: str, content: str) -> None:
        path = self._directory / name
        if not path.exists():
            temporary = path.with_name(f"{name}.{os.getpid()}")
            temporary.write_text(content)
            temporary.rename(path)


def storage_driver(directory: Path) -> str:
    """`overlay` if the kernel mounts one in `directory`, else `vfs`; remembered in a file."""
    remembered = directory / "driver"
    if remembered.exists():
        return remembered.read_text().strip()
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for name in ("lower", "upper", "work", "merged"):
            (Path(scratch) / name).mkdir()
        # In a mount namespace of its own, so that nothing stays mounted.
        mounted = subprocess.run(
            [
                *("unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o"),
                f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work",
                f"{scratch}/merged",
            ],
            capture_output=True,
            check=False,
        )
        driver = "overlay" if mounted.returncode == 0 else "vfs"
        if (Path(scratch) / "work/work").exists():
            (Path(scratch) / "work/work").chmod(0o700)
    temporary = remembered.with_name(f"driver.{os.getpid()}")
    temporary.write_text(driver)
    temporary.rename(remembered)
    return driver


def remove_build_cache(data_dir: Path) -> int:
    """Removes buildah's storage and returns the bytes freed. Raises ImageError during a build."""
    directory = data_dir / "cache" / "buildah"
    if not directory.exists():
        return 0
    with (directory / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageError(
                "the build cache is in use by a running build; try again later"
            ) from None
        before = shutil.disk_usage(directory).free
        for driver in ("overlay", "vfs"):
            shutil.rmtree(directory / driver, ignore_errors=True)
        return max(0, shutil.disk_usage(directory).free - before)


def image_id_of(iid_file: Path) -> str:
    """The `sha256:` image id that buildah wrote."""
    text = iid_file.read_text().strip()
    return text if text.startswith("sha256:") else f"sha256:{text}"
