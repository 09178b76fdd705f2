"""`torpor vm inspect`: what a snapshot file holds."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from torpor.binaries import find_binary
from torpor.controller.sealing import Seal
from torpor.datadir import data_dir
from torpor.errors import TorporError
from torpor.vms.files import is_snapshot_file, read_snapshot


def inspect_snapshot(path: Path, named: Path | None = None) -> dict[str, Any]:
    """Kind, sizes, pages by coding and metadata of a snapshot whose checksums are all good.

    Messages call it `named`.
    """
    done = subprocess.run(
        [find_binary("torpor-vmm"), "inspect", path], check=False, capture_output=True
    )
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").removeprefix("torpor-vmm: ").strip()
        raise TorporError(text.replace(str(path), str(named or path)))
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _inspect_file(path: Path, data: str | None) -> dict[str, Any]:
    """What a file of `torpor vm snapshot` holds, once its seal was found right."""
    stored = read_snapshot(path, Seal.of(data_dir(data)))
    parts = {"delta": stored.delta, "template": stored.template}
    return {
        "seal": "good",
        "description": asdict(stored.description),
        **{name: _inspect_part(path, content) for name, content in parts.items() if content},
    }


def _inspect_part(path: Path, content: bytes) -> dict[str, Any]:
    descriptor = os.memfd_create("snapshot", 0)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        return inspect_snapshot(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), path)
    finally:
        os.close(descriptor)


def _size(count: int) -> str:
    return f"{count / 1000:.1f} KB" if count < 10_000_000 else f"{count / 1_000_000:.1f} MB"


@click.command(name="inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
@click.pass_obj
def vm_inspect(data: str | None, file: Path, output: str) -> None:
    """Show what a snapshot FILE holds, and whether it is whole."""
    if not is_snapshot_file(file):
        found = inspect_snapshot(file)
        lines = _lines(found)
    else:
        found = _inspect_file(file, data)
        lines = [
            (name.replace("_", " "), str(value)) for name, value in found["description"].items()
        ]
        lines.append(("seal", found["seal"]))
        for part in ("delta", "template"):
            if part in found:
                lines += [("", ""), *_lines(found[part])]
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in lines:
        click.echo(f"{name + ':':<17}{value}" if name else "")


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    metadata = found["metadata"]
    size = f"{_size(found['bytes'])} for {_size(found['memory_bytes'])}"
    ratio = found["memory_bytes"] / found["bytes"]
    lines = [
        ("kind", found["kind"]),
        ("size", f"{size} of memory ({ratio:.0f} to 1)"),
        ("checksums", found["checksums"]),
        ("instance", f"{metadata['uuid']}, generation {metadata['generation']}"),
        ("memory", f"{metadata['machine']['memory_limit_bytes'] >> 20} MiB"),
        ("image", metadata["machine"]["image"]),
        ("template", metadata["template"] or "none"),
        ("warm base", metadata["warm_base"] or "none"),
    ]
    lines += [
        (f"{name.replace('_', ' ')} pages", f"{count}, {_size(found['changed_bytes'][name])}")
        for name, count in found["pages"].items()
    ]
    return lines
