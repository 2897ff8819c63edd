"""Passes, and the one grammar that names them: `name{key=value key=a,b}(child,child)`.

Braces hold options, parentheses hold children, commas separate. `fixpoint(cleanup,fold),quantize{scheme=static}` is
a sentence of it. A pass is a frozen dataclass: its fields are its options, and its text form round-trips.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from optimizer.errors import PipelineError
from optimizer.graph import Graph

if TYPE_CHECKING:
    from optimizer.context import Context


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a graph. Fields are options; a field named `children` holds sub-passes.

    `name` is its name in the grammar; `lossy` says that outputs may change beyond rounding; `prepares` that it only
    makes way for a pass behind it; `tracked` that it edits by the methods of `Graph` alone, which know whether shapes
    must be inferred again; `drops` that nodes which its option `skip` names stay in float, so that a compiler's
    refusals go there. Options may be bool, int, float, str, Literal or tuple[str, ...].
    """

    name: ClassVar[str]
    lossy: ClassVar[bool] = False
    prepares: ClassVar[bool] = False
    tracked: ClassVar[bool] = False
    drops: ClassVar[bool] = False

    @abstractmethod
    def run(self, graph: Graph, ctx: Context) -> int:
        """Rewrites `graph` in place and returns how many rewrites it made; 0 means it is untouched."""

    def __str__(self) -> str:
        return text(self)


@dataclass(frozen=True)
class Spec:
    """A parsed, not yet built pass: its name, its options as written, its children, where it stands."""

    name: str
    options: dict[str, str]
    children: tuple[Spec, ...]
    at: int


def build(source: str) -> tuple[Pass, ...]:
    """The passes a text names. Raises PipelineError, with a caret under the offending place."""
    return tuple(_build(spec, source) for spec in parse(source))


def text(passes: Pass | Sequence[Pass]) -> str:
    """The text form of passes; options equal to their defaults are left out."""
    if not isinstance(passes, Pass):
        return ",".join(map(text, passes))
    options = [
        f"{f.name}={_write(getattr(passes, f.name))}"
        for f in dataclasses.fields(passes)
        if f.name != "children" and getattr(passes, f.name) != f.default
    ]
    children = getattr(passes, "children", ())
    return passes.name + (f"{{{' '.join(options)}}}" if options else "") + (f"({text(children)})" if children else "")


_TOKEN = re.compile(r"\s*(?:(?P<word>[\w./:+-]+)|(?P<mark>[{}(),=]))")


def parse(source: str) -> tuple[Spec, ...]:
    """Parses without looking names up."""
    parser = _Parser(source)
    found = parser.sequence()
    if parser.peek() is not None:
        parser.fail("expected ',' or the end")
    return found


class _Parser:
    def __init__(self, source: str):
        self.source, self.at = source, 0

    def peek(self) -> str | None:
        match = _TOKEN.match(self.source, self.at)
        if match is None:
            if self.source[self.at :].strip():
                self.fail("unexpected character")
            return None
        return match.group().strip()

    def take(self, expected: str | None = None, what: str = "") -> str:
        token = self.peek()
        if token is None or (expected is not None and token != expected):
            self.fail(f"expected {what or repr(expected)}")
        match = _TOKEN.match(self.source, self.at)
        assert match is not None and token is not None
        self.at = match.end()
        return token

    def word(self, what: str) -> str:
        if (token := self.peek()) is None or token in "{}(),=":
            self.fail(f"expected {what}")
        return self.take(token)

    def start(self) -> int:
        """Where the next token starts."""
        return len(self.source) - len(self.source[self.at :].lstrip())

    def fail(self, why: str, at: int | None = None) -> typing.NoReturn:
        raise _error(self.source, self.start() if at is None else at, why)

    def sequence(self) -> tuple[Spec, ...]:
        if self.peek() is None:
            return ()
        found = [self.one()]
        while self.peek() == ",":
            self.take(",")
            found.append(self.one())
        return tuple(found)

    def one(self) -> Spec:
        start = self.start()
        name = self.word("the name of a pass")
        options: dict[str, str] = {}
        children: tuple[Spec, ...] = ()
        if self.peek() == "{":
            self.take("{")
            while self.peek() != "}":
                at = self.start()
                key = self.word("an option or '}'")
                if key in options:
                    self.fail(f"'{key}' is given twice", at)
                self.take("=")
                options[key] = self.values()
            self.take("}")
        if self.peek() == "(":
            self.take("(")
            children = self.sequence()
            self.take(")", "',' or ')'")
        return Spec(name, options, children, start)

    def values(self) -> str:
        value = self.word("a value")
        while self.peek() == ",":
            self.take(",")
            value += "," + self.word("a value")
        return value


def _error(source: str, at: int, why: str) -> PipelineError:
    return PipelineError(f"in the pipeline, {why}:\n  {source}\n  {' ' * at}^")


def _build(spec: Spec, source: str) -> Pass:
    from optimizer import registry

    if spec.name not in registry.pass_names():
        near = get_close_matches(spec.name, registry.pass_names(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; 'optimize passes' lists them"
        raise _error(source, spec.at, f"no pass is called '{spec.name}'{hint}")
    kind = registry.load_pass(spec.name)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in spec.options.items():
        if key not in fields or key == "children":
            names = ", ".join(n for n in fields if n != "children") or "none"
            raise _error(source, spec.at, f"'{spec.name}' has no option '{key}' (it has: {names})")
        try:
            values[key] = _read(value, hints[key])
        except ValueError as error:
            raise _error(source, spec.at, f"'{spec.name}' cannot take {key}={value}; it takes {error}") from None
    if spec.children and "children" not in fields:
        raise _error(source, spec.at, f"'{spec.name}' takes no passes in parentheses")
    if spec.children:
        values["children"] = tuple(_build(child, source) for child in spec.children)
    try:
        return kind(**values)
    except ValueError as error:
        raise _error(source, spec.at, f"'{spec.name}': {error}") from None


def _read(value: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if str(choice) == value:
                return choice
        raise ValueError(f"one of {', '.join(map(str, choices))}")
    if typing.get_origin(kind) is tuple:
        return tuple(value.split(","))
    if kind is bool:
        if value not in ("true", "false"):
            raise ValueError("true or false")
        return value == "true"
    try:
        return kind(value)
    except ValueError:
        raise ValueError("a whole number" if kind is int else "a number") from None


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
