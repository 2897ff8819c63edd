"""How much of an error at an operator's output reaches the model's outputs, by trying.

Noise of one per cent of the operator's own variance is added to its output, and the noise at the model's outputs
measured, as a share of their signal. So an error in a layer that everything hangs on costs more than one that a later
layer hides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

import numpy as np

from optimizer.context import Context
from optimizer.evaluate import Feeds
from optimizer.graph import Array, Graph

NOISE = 0.01
FEEDS = 4
SECONDS = 120.0  # for all operators together
LEAST = 1e-6


def reaches(graph: Graph, names: Sequence[str], outputs: Sequence[str], ctx: Context) -> dict[str, float]:
    """By node name, for operators with weights; nothing where it would take too long. `outputs`: what to look at."""
    feeds = list(islice(ctx.batches, FEEDS))
    start = time.perf_counter()
    with ctx.evaluate.open(graph, outputs) as run:
        reference = [run(feed) for feed in feeds]
    each = (time.perf_counter() - start) / max(1, len(feeds))
    feeds = feeds[: max(1, int(SECONDS / max(each * len(names), 1e-9)))]
    if each * len(names) > SECONDS:
        return {}
    found = {}
    for done, name in enumerate(names):
        found[name] = _reach(graph, name, outputs, ctx, feeds, reference)
        ctx.progress("prune: sensitivity", done + 1, len(names))
    return found


def _reach(
    graph: Graph, name: str, outputs: Sequence[str], ctx: Context, feeds: Sequence[Feeds], reference: Sequence[Feeds]
) -> float:
    twin = graph.copy()
    node = next(n for n in twin.nodes if n.name == name)
    out = node.outputs[0]
    clean = twin.variable(out.name + "_clean", out.dtype, out.shape)
    node.outputs[0] = clean
    noise, square, mean, level, scaled = (twin.variable(f"{out.name}_{i}", out.dtype) for i in range(5))
    twin.add("RandomNormalLike", [clean], [noise], {"seed": 1.0})
    twin.add("ReduceL2", [clean], [square], {"keepdims": 0})
    twin.add("ReduceL2", [noise], [mean], {"keepdims": 0})
    twin.add("Div", [square, mean], [level])
    small = twin.constant(np.array(NOISE**0.5, np.dtype(out.dtype or np.float32)), "noise")
    strength = twin.variable("strength", out.dtype)
    twin.add("Mul", [level, small], [strength])
    twin.add("Mul", [noise, strength], [scaled])
    twin.add("Add", [clean, scaled], [out])
    twin.tidy()
    with ctx.evaluate.open(twin, outputs) as run:
        made = [run(feed) for feed in feeds]
    found = max(_ratio([r[o] for r in reference], [m[o] for m in made]) for o in outputs)
    return max(found / NOISE, LEAST)


def _ratio(reference: Sequence[Array], values: Sequence[Array]) -> float:
    pairs = [(r.astype(np.float64), v) for r, v in zip(reference, values, strict=False) if r.shape == v.shape]
    signal = sum(float(np.square(r).sum()) for r, _ in pairs)
    found = sum(float(np.square(r - v).sum()) for r, v in pairs) / signal if signal else 0.0
    return found if np.isfinite(found) else 1.0
