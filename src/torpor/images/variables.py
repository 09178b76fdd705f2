"""Variables of a Dockerfile: what ARG and ENV set, and what a text becomes with it.

buildah expands them in instructions by itself, but knows no here-documents. The words are those of
the Dockerfile reference, "Environment replacement", as BuildKit reads them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torpor.images.dockerfile import Instruction

_SPECIAL = "@*#?-$!0"
_OPERATORS = "-+?"

Lookup = Callable[[str], str | None]


class BadSubstitutionError(ValueError):
    """What stands behind a `$` is no variable."""


@dataclass(slots=True)
class Variables:
    """What is set at a point of a stage. `inherited` is the environment of the stage's base."""

    inherited: Lookup
    build_args: Mapping[str, str]
    globals_: Mapping[str, str]
    """What ARG set before the first FROM, and the platform."""
    escape: str = "\\"
    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str | None] = field(default_factory=dict)

    def environment(self, name: str) -> str | None:
        """What RUN sees of ENV alone, as a stage does that builds on this one."""
        own = self.env.get(name)
        return own if own is not None else self.inherited(name)

    def lookup(self, name: str) -> str | None:
        """The value of a variable; ENV wins over ARG."""
        found = self.environment(name)
        return found if found is not None else self.arguments.get(name)

    def take(self, instruction: Instruction) -> None:
        """Follows ENV and ARG. What is wrong with one is left to buildah to say."""
        try:
            if instruction.keyword == "ENV":
                # All that one instruction sets is expanded with what was set before it.
                pairs = _pairs(instruction.rest, self.escape)
                self.env.update([(self._word(name), self._word(value)) for name, value in pairs])
            elif instruction.keyword == "ARG":
                for word in split_words(instruction.rest, self.escape):
                    self._declare(*word.partition("="))
        except BadSubstitutionError:
            return

    def _declare(self, name: str, equals: str, default: str) -> None:
        value = self.build_args.get(name)
        if value is None:
            value = self._word(default) if equals else self.globals_.get(name)
        self.arguments[name] = value

    def _word(self, text: str) -> str:
        return expand(text, self.lookup, escape=self.escape)

    def declarations(self) -> list[str]:
        """ARG instructions that set again what is declared."""
        return [
            # What was given for the build is given again, whatever stands in it.
            f"ARG {name}"
            if value is None or name in self.build_args
            else f"ARG {name}={self._quoted(value)}"
            for name, value in self.arguments.items()
        ]

    def _quoted(self, value: str) -> str:
        special = f'"${self.escape}'
        return '"' + "".join(self.escape + c if c in special else c for c in value) + '"'


def split_words(text: str, escape: str) -> list[str]:
    """Words between white space, which quotes and the escape character keep together."""
    words: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == escape and quote != "'" and at < len(text):
            word += char + text[at]
            at += 1
        elif not quote and char.isspace():
            words += [word] if word else []
            word = ""
        else:
            if char == quote:
                quote = ""
            elif not quote and char in "'\"":
                quote = char
            word += char
    return [*words, word] if word else words


def _pairs(rest: str, escape: str) -> list[tuple[str, str]]:
    words = split_words(rest, escape)
    if "=" not in words[0]:  # the old form: one name, and all the rest
        return [(words[0], rest[len(words[0]) :].strip())]
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def expand(text: str, lookup: Lookup, *, escape: str = "\\", quotes: bool = True) -> str:
    """Puts values in place of `$NAME`, `${NAME}` and `${NAME:-otherwise}`, `:+` and `:?`.

    A character behind `escape` stands for itself. With `quotes` those are taken away, and nothing
    is replaced in single ones. Raises BadSubstitutionError.
    """
    return _Text(text, lookup, escape, quotes).until("")


class _Text:
    """A text that is being read."""

    def __init__(self, text: str, lookup: Lookup, escape: str, quotes: bool) -> None:
        self._text = text
        self._lookup = lookup
        self._escape = escape
        self._quotes = quotes
        self._at = 0

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += len(char)
        return char

    def until(self, stop: str) -> str:
        """What the text becomes, up to `stop`, which is taken as well; else to the end."""
        out = ""
        while char := self._next():
            if char == stop:
                return out
            if char == "$":
                out += self._dollar()
            elif self._quotes and char == "'":
                out += self._single_quoted()
            elif self._quotes and char == '"':
                out += self._double_quoted()
            else:
                out += self._next() if char == self._escape else char
        if stop:
            raise BadSubstitutionError(f"{stop} is missing")
        return out

    def _single_quoted(self) -> str:
        text, quote, rest = self._text[self._at :].partition("'")
        if not quote:
            raise BadSubstitutionError("' is missing")
        self._at = len(self._text) - len(rest)
        return text

    def _double_quoted(self) -> str:
        out = ""
        while char := self._next():
            if char == '"':
                return out
            if char == "$":
                out += self._dollar()
            elif char == self._escape and self._peek() in ('"', "$", self._escape):
                out += self._next()
            else:
                out += char
        raise BadSubstitutionError('" is missing')

    def _name(self) -> str:
        start = self._at
        if self._peek().isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif self._peek() and self._peek() in _SPECIAL:
            self._at += 1
        else:
            while self._peek().isalnum() or self._peek() == "_":
                self._at += 1
        return self._text[start : self._at]

    def _dollar(self) -> str:
        if self._peek() != "{":
            name = self._name()
            return (self._lookup(name) or "") if name else "$"
        start = self._at - 1
        self._at += 1
        name = self._name()
        operator = self._next()
        if not name or not operator:
            raise BadSubstitutionError(f"{self._text[start : self._at]} names no variable")
        value = self._lookup(name)
        if operator == "}":
            return value or ""
        if operator == ":":
            operator = self._next()
            value = value or None
        if not operator or operator not in _OPERATORS:
            shown = self._text[start : self._at].rstrip()
            raise BadSubstitutionError(
                f"{shown} is not understood: write ${{NAME}}, ${{NAME:-otherwise}}, "
                "${NAME:+instead} or ${NAME:?message}, or \\$ for a dollar sign"
            )
        word = self.until("}")
        if operator == "+":
            return "" if value is None else word
        if value is None and operator == "?":
            raise BadSubstitutionError(f"{name}: {word or 'is not set'}")
        return word if value is None else value
