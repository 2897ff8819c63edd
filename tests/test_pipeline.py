"""The grammar: every pipeline's text builds the pipeline again, and a mistake in one is shown with a caret."""

from __future__ import annotations

import dataclasses
import random
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from optimizer import registry
from optimizer.context import Context
from optimizer.errors import PipelineError
from optimizer.graph import Graph
from optimizer.pipeline import Pass, build, parse, text
from optimizer.targets import targets

WORDS = ["a", "conv-bn", "x.y", "a/b", "1e-3"]


@dataclass(frozen=True)
class Sample(Pass):
    """A pass with an option of every kind."""

    name: ClassVar[str] = "sample"
    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    method: Literal["minmax", "mse"] = "mse"
    words: tuple[str, ...] = ()
    path: str = "none"
    children: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        if self.count > 99:
            raise ValueError("count ends at 99")

    def run(self, graph: Graph, ctx: Context) -> int:
        return 0


@pytest.fixture(autouse=True)
def _with_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.PASSES, "sample", f"{__name__}:Sample")
    registry._table.cache_clear()
    yield  # type: ignore[misc]  # a generator fixture
    registry._table.cache_clear()


def draw(rng: random.Random, depth: int = 0) -> Pass:
    """A random pass, any registered one included, with random options of the declared kinds."""
    name = rng.choice(registry.pass_names())
    kind = registry.load_pass(name)
    hints = typing.get_type_hints(kind)
    fields = [f.name for f in dataclasses.fields(kind)]
    values = {f: _value(rng, hints[f]) for f in fields if f != "children" and rng.random() < 0.5}
    if "children" in fields and (depth < 3 or name == "fixpoint"):
        values["children"] = tuple(draw(rng, depth + 1) for _ in range(rng.randint(name == "fixpoint", 3)))
    try:
        return kind(**values)
    except ValueError:  # an option out of its range
        return Sample() if name != "sample" else Sample(flag=True)


def _value(rng: random.Random, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return rng.choice(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return tuple(rng.choice(WORDS) for _ in range(rng.randint(1, 3)))
    return {bool: rng.random() < 0.5, int: rng.randint(-9, 99), float: rng.gauss(0, 1), str: rng.choice(WORDS)}[kind]


@pytest.mark.parametrize("seed", range(100))
def test_text_builds_what_it_describes(seed: int) -> None:
    rng = random.Random(seed)
    passes = tuple(draw(rng) for _ in range(rng.randint(1, 4)))
    written = text(passes)
    assert build(written) == passes
    assert text(build(written)) == written
    spaced = "".join(c + " " * rng.randint(0, 2) if c in "{}(),=" else c for c in written)
    assert build(spaced) == passes


@pytest.mark.parametrize("name", registry.pass_names())
def test_every_registered_pass_has_a_text_form(name: str) -> None:
    kind = registry.load_pass(name)
    assert kind.name == name
    assert dataclasses.is_dataclass(kind)
    assert (kind.__doc__ or "").strip()


@pytest.mark.parametrize("target", targets().values(), ids=lambda t: t.name)
def test_the_pipelines_of_every_target_build_and_round_trip(target: Any) -> None:
    for tail in target.candidates.values():
        passes = build(",".join(filter(None, [target.prepare, tail])))
        assert passes
        assert build(text(passes)) == passes


def test_defaults_are_not_written() -> None:
    assert text(Sample()) == "sample"
    assert text(Sample(flag=True, words=("a", "b"))) == "sample{flag=true words=a,b}"
    assert str(Sample(children=(Sample(), Sample(count=1)))) == "sample(sample,sample{count=1})"


def test_no_text_is_no_pass() -> None:
    assert build("") == build("  ") == ()


@pytest.mark.parametrize(
    ("source", "at", "message"),
    [
        ("sample,,sample", 7, "expected the name of a pass"),
        ("sample,", 7, "expected the name of a pass"),
        ("sample sample", 7, "expected ',' or the end"),
        ("sample{flag}", 11, "expected '='"),
        ("sample{flag=}", 12, "expected a value"),
        ("sample{flag=true", 16, "expected an option or '}'"),
        ("sample{count=1 count=2}", 15, "'count' is given twice"),
        ("sample(sample", 13, "expected ',' or ')'"),
        ("sample()", 7, "expected the name of a pass"),
        ("sample)", 6, "expected ',' or the end"),
        ("sample?", 6, "unexpected character"),
        ("sample, smaple", 8, "no pass is called 'smaple'; did you mean sample"),
        ("zzzzzz", 0, "no pass is called 'zzzzzz'; 'optimize passes' lists them"),
        ("sample(cleanup,  sample{depth=3})", 17, "'sample' has no option 'depth' (it has: flag, count, ratio"),
        ("sample{children=3}", 0, "'sample' has no option 'children'"),
        ("sample{flag=yes}", 0, "cannot take flag=yes; it takes true or false"),
        ("sample{count=2.5}", 0, "cannot take count=2.5; it takes a whole number"),
        ("sample{ratio=much}", 0, "cannot take ratio=much; it takes a number"),
        ("sample{method=l1}", 0, "cannot take method=l1; it takes one of minmax, mse"),
        ("sample{count=100}", 0, "'sample': count ends at 99"),
        ("cse(sample)", 0, "'cse' takes no passes in parentheses"),
    ],
)
def test_mistakes_are_shown_with_a_caret(source: str, at: int, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        build(source)
    first, quoted, caret = str(caught.value).splitlines()
    assert message in first
    assert quoted == f"  {source}"
    assert caret == "  " + " " * at + "^"
    assert caught.value.exit_code == 2


def test_parsing_looks_no_name_up() -> None:
    (spec,) = parse(" any-name { a = 1,2  b=x } ( other ) ")
    assert (spec.name, spec.options, spec.at) == ("any-name", {"a": "1,2", "b": "x"}, 1)
    assert [child.name for child in spec.children] == ["other"]
