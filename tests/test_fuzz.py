"""Every registered pass and every target on seeded random models: outputs as before, model valid, interface kept.

A new pass is covered by being listed in the registry, a new target by being listed in `targets`.
`python -m tests.fuzz FIRST LAST` tries more seeds.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import onnx
import pytest

from optimizer import registry
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
from optimizer.instrument import Verify
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import Pass, build
from optimizer.statistics import Statistics
from optimizer.targets import target, targets
from tests.fuzz import random_feeds, random_model

MODELS, CHUNK = 150, 10
EXACT = ("cleanup", "cse", "fold", "shapes")  # these must keep NaN and infinity where they are, too
TEXTS = {"cast": "calibrate{of=all},cast{force=true}"}  # passes that need another, or larger models, to do anything
NEED_OTHERS = ("dequantize", "fix", "fixpoint", "quantize")  # do nothing alone; the targets' pipelines hold them
REFUSING = ("prune",)  # refuses most of these models; tests/test_prune.py has a fuzz of its own


@pytest.mark.parametrize("first", range(0, MODELS, CHUNK))
def test_random_models(first: int) -> None:
    found = [failures_of(seed) for seed in range(first, first + CHUNK)]
    assert found.count(None) <= 1, "the runtime itself fails on too many of the models"
    failures = [why for whys in found for why in whys or ()]
    assert not failures, "\n".join(failures)


def test_every_pass_finds_something_to_do() -> None:
    """Guards the test above: a model generator that no pass bites on would prove nothing."""
    fired: Counter[str] = Counter()
    names = [
        n for n in registry.pass_names() if n not in (*NEED_OTHERS, *REFUSING, "calibrate")
    ]  # which changes nothing
    for seed in range(30):
        graph = load(random_model(seed))
        for name in names:
            twin = graph.copy()
            feeds = random_feeds(random_model(seed), seed)
            steps = PassManager().run(build(TEXTS.get(name, name)), twin, _context(feeds))
            fired[name] += steps[-1].count > 0
    assert all(fired[name] >= 3 for name in names), fired


def failures_of(seed: int) -> list[str] | None:
    """What the passes do wrong with the model of a seed, one line each; None where the runtime cannot run it."""
    model = random_model(seed)
    feeds, wild = random_feeds(model, seed), random_feeds(model, seed, infinite=True)
    original = load(model)
    try:
        reference, wild_reference = _outputs(original, feeds), _outputs(original, wild)
    except Exception:  # seen once in 1,000 models: "Trying to get a TensorSeq" for a tensor that a branch captures
        return None
    failures = []
    for name, (passes, lossy) in pipelines().items():
        try:
            graph = original.copy()
            PassManager([Verify()]).run(passes, graph, _context(feeds))
            why = _interface(model, to_model(graph))
            outputs = _outputs(graph, feeds)
            why = why or ("" if lossy else _difference(reference, outputs))
            if name in EXACT:
                why = why or _difference(wild_reference, _outputs(graph, wild))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            failures.append(f"seed {seed}, {name}: {why}")
    return failures


@cache
def pipelines() -> dict[str, tuple[tuple[Pass, ...], bool]]:
    """Each registered pass alone and each target's candidates, by name, and whether outputs may change."""
    texts = {name: TEXTS.get(name, name) for name in registry.pass_names() if name not in (*NEED_OTHERS, *REFUSING)}
    for one in targets().values():
        for scheme, tail in one.candidates.items():
            texts[f"{one.name} {scheme}"] = ",".join(filter(None, [one.prepare, tail]))
    return {name: (build(text), any(p.lossy for p in build(text))) for name, text in texts.items()}


def _context(feeds: list[Feeds]) -> Context:
    return Context(target("ort-int8"), Evaluate(threads=1), feeds, statistics=Statistics())


def _outputs(graph: Graph, feeds: list[Feeds]) -> list[Feeds]:
    with Evaluate(threads=1).open(graph) as run:
        return [run(feed) for feed in feeds]


def _difference(reference: list[Feeds], outputs: list[Feeds]) -> str:
    for name, difference in compare(zip(reference, outputs, strict=True)).items():
        if not difference.within_rounding():
            return f"output '{name}': {difference.broken or difference}"
    return ""


def _interface(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    same = list(before.graph.input) == list(after.graph.input) and list(before.graph.output) == list(after.graph.output)
    return "" if same else "another interface"
