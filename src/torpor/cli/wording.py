"""What the server says about fields of its API, in the words of the command line.

A parameter of a command is called as the field that it sets, or as the object that has this field:
`--memory` is the parameter `memory_mb`. So there is no other table of which option sets what, and
whatever the server says of a field is told of the parameter, with what was given for it.
"""

import re
from collections.abc import Mapping
from typing import Any

import click

_FIELD = r"[a-z_]+(?:\.[a-z_]+)*"
_RULE = re.compile(rf"'(?P<field>{_FIELD})' (?P<rule>.*)", re.DOTALL)
"""A value that breaks a rule."""
_TYPE = re.compile(r"Body: (?P<rule>.*) - at `\$(?P<field>[^`]*)`(?P<more>.*)", re.DOTALL)
"""A value that is none of the field's type."""
_MENTION = re.compile(rf"\b(?P<verb>specify|needs|give) '(?P<field>{_FIELD})'")
_BOUND = re.compile(r"Expected `int` (?P<side>[<>])= (?=-?\d)")
_SIDES = {"<": "must be at most ", ">": "must be at least "}
_UNITS = {"mb": "MiB", "ms": "ms", "s": "s"}
"""By the last part of a field's name."""
_SHOWN_CHARS = 80


def in_words(message: str) -> str:
    """What the server said, told of the options and arguments of the command that runs."""
    context = click.get_current_context(silent=True)
    if context is None:
        return message
    parameters = {each.name or "": each for each in context.command.params}
    broken = _RULE.fullmatch(message) or _TYPE.fullmatch(message)
    found = None if broken is None else _parameter(parameters, broken["field"])
    if broken is not None and found is not None:
        rule = _BOUND.sub(lambda bound: _SIDES[bound["side"]], broken["rule"])
        unit = _UNITS.get(broken["field"].rpartition("_")[2])
        if unit is not None and rule[-1:].isdigit():
            rule += f" {unit}"
        more = broken.groupdict().get("more", "")
        return f"{_named(found, context)}{_given(found, context, rule)} {rule}{more}"

    def mention(match: re.Match[str]) -> str:
        found = _parameter(parameters, match["field"])
        return match[0] if found is None else f"{match['verb']} {found.get_error_hint(context)}"

    return _MENTION.sub(mention, message)


def _parameter(parameters: Mapping[str, click.Parameter], field: str) -> click.Parameter | None:
    """What sets a field, or the object that it is in."""
    names = reversed(re.findall(r"[a-z_]+", field))
    return next((parameters[name] for name in names if name in parameters), None)


def _named(parameter: click.Parameter, context: click.Context) -> str:
    return f"{parameter.param_type_name} {parameter.get_error_hint(context)}"


def _given(parameter: click.Parameter, context: click.Context, rule: str) -> str:
    """What was given, unless the rule says it."""
    value: Any = context.params.get(parameter.name or "")
    words = value if isinstance(value, tuple) else (value,)
    shown = ", ".join(repr(word) for word in words if word is not None)
    if not shown or (shown[0] in "'\"" and shown in rule):
        return ""
    if len(shown) > _SHOWN_CHARS:
        shown = shown[:_SHOWN_CHARS] + "..."
    return f" is {shown}:"
