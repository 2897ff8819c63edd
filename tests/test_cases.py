"""Runs every golden case: printed graph, numerics against the original, honest count, and nothing left to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import shapes
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
from optimizer.instrument import Verify, check
from optimizer.io import load
from optimizer.manager import PassManager, Step
from optimizer.pipeline import build
from optimizer.statistics import Statistics
from optimizer.text import show
from tests.golden import Case, cases

FOLDER = Path(__file__).parent / "cases"
CASES = cases(FOLDER)


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c.path.relative_to(FOLDER).with_suffix("")))
def test_case(case: Case, request: pytest.FixtureRequest) -> None:
    graph, feeds = load(case.model()), case.feeds()
    context = Context(case.target, Evaluate(threads=1), batches=feeds, statistics=Statistics())
    reference = _outputs(graph, context, feeds)

    PassManager([Verify()]).run(build(case.pipeline), graph, context)
    printed = _print(graph)
    check(graph, case.pipeline)
    _same(case, reference, _outputs(graph, context, feeds))

    again = PassManager([Verify()]).run(build(case.pipeline), graph, context)
    assert [s.name for s in _leaves(again) if s.count] == [], "a second run still finds something to do"
    assert _print(graph) == printed

    if request.config.getoption("--update"):
        case.update(printed)
        return
    assert printed.splitlines() == case.result.strip().splitlines(), "run 'pytest --update' where this is intended"


def test_every_case_says_what_it_shows() -> None:
    titles = [case.title for case in CASES]
    assert all(titles) and len(set(titles)) == len(titles)


def _print(graph: Graph) -> str:
    """With shapes as they are now: a pass notes those that it knew before it rewrote anything."""
    shapes.infer(graph)
    return show(graph)


def _outputs(graph: Graph, context: Context, feeds: list[Feeds]) -> list[Feeds]:
    with context.evaluate.open(graph) as run:
        return [run(feed) for feed in feeds]


def _same(case: Case, reference: list[Feeds], outputs: list[Feeds]) -> None:
    for name, difference in compare(zip(reference, outputs, strict=True)).items():
        if case.sqnr is None:
            assert difference.within_rounding(), f"{name}: {difference}"
        else:
            assert difference.sqnr >= case.sqnr, f"{name}: {difference.sqnr:.1f} dB"


def _leaves(steps: list[Step]) -> list[Step]:
    return [leaf for step in steps for leaf in (_leaves(step.children) if step.children else [step])]
