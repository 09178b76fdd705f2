"""Results for a person or a program: `--output table|json|yaml`."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

from torpor.errors import UsageError

TABLE = "table"
FORMATS = (TABLE, "json", "yaml")
_TOO_EXACT = re.compile(r"(?<=sha256:[0-9a-f]{12})[0-9a-f]{52}|(?<=T\d\d:\d\d:\d\d)\.\d+(?=Z)")
"""What a table leaves out: most of a digest, and fractions of seconds."""


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--output`, which every command that shows something has."""
    return click.option(
        "-o",
        "--output",
        "format_",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print the result.",
    )(command)


def say(text: str) -> None:
    """A word to the person, on standard error, so that results can be piped."""
    click.echo(text, err=True)


def confirm(question: str) -> None:
    """Asks before something is destroyed. Raises UsageError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Standard input is no terminal to ask on: --yes says so")
    click.confirm(question, abort=True, err=True)


def show(items: Sequence[Any], format_: str, columns: Sequence[tuple[str, str]]) -> None:
    """Prints objects; `columns` are a table's headings with the members below them."""
    plain = [as_plain(item) for item in items]
    if format_ == "json":
        click.echo(json.dumps(plain, indent=2, default=_text))
    elif format_ == "yaml":
        import yaml

        click.echo(yaml.safe_dump(json.loads(json.dumps(plain, default=_text))), nl=False)
    else:
        rows = [tuple(heading for heading, _ in columns)]
        rows += [tuple(cell(_member(item, path)) for _, path in columns) for item in plain]
        widths = [max(len(row[number]) for row in rows) for number in range(len(columns))]
        for row in rows:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo(line.rstrip())


def as_plain(item: Any) -> Any:
    """An object of the SDK as what it is in JSON; anything else as it is."""
    if hasattr(item, "model_dump"):
        return item.model_dump(exclude_none=True, by_alias=True)
    return item


def _member(item: Any, path: str) -> Any:
    for name in path.split("."):
        if isinstance(item, list):
            return [_member(each, name) for each in item]
        item = item.get(name) if isinstance(item, dict) else None
    return item


def cell(value: Any) -> str:
    """A value of an object as a person reads it."""
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ",".join(map(cell, value))
    return _TOO_EXACT.sub("", _text(value))


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value)
