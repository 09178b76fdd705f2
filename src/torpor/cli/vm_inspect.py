"""`torpor vm inspect`: what a snapshot file holds."""

import json
import subprocess
from pathlib import Path
from typing import Any

import click

from torpor.binaries import find_binary
from torpor.errors import TorporError


def inspect_snapshot(path: Path) -> dict[str, Any]:
    """Kind, sizes, pages by coding and metadata of a snapshot whose checksums are all good."""
    done = subprocess.run(
        [find_binary("torpor-vmm"), "inspect", path], check=False, capture_output=True
    )
    if done.returncode != 0:
        raise TorporError(done.stderr.decode(errors="replace").removeprefix("torpor-vmm: ").strip())
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _size(count: int) -> str:
    return f"{count / 1000:.1f} KB" if count < 10_000_000 else f"{count / 1_000_000:.1f} MB"


@click.command(name="inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", type=click.Choice(["text", "json"]), default="text")
def vm_inspect(file: Path, output: str) -> None:
    """Show what a snapshot FILE holds, and whether it is whole."""
    found = inspect_snapshot(file)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return
    metadata = found["metadata"]
    lines = [
        ("kind", found["kind"]),
        ("size", f"{_size(found['bytes'])} for {_size(found['memory_bytes'])} of memory"),
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
    for name, value in lines:
        click.echo(f"{name + ':':<17}{value}")
