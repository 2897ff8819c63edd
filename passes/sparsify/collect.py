"""Runs the graph over the data and keeps second moments of what layers sum over, a few layers at a time.

Every round runs the model once a batch and sees as many layers, in order, as fit a bounded amount of memory; their
weights are changed before the next round, so that later layers see, and correct for, what became of earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from optimizer.context import Context
from optimizer.graph import Graph
from passes.sparsify.layers import Layer
from passes.sparsify.moments import JUDGING, LARGEST, Moments, nbytes
from passes.sparsify.views import View

ROWS = 8192  # drawn for a layer, of all batches together
BATCHES = 256  # looked at, at most
MEMORY = 1 << 29  # bytes of moments and fetched tensors in one round
LAYERS = 8  # in one round: with fewer, later layers see earlier ones changed; with more, the model runs less often

Key = tuple[str, View]  # layers that read one tensor alike share its moments


def collected(
    graph: Graph, layers: Sequence[Layer], ctx: Context, whole: bool
) -> Iterator[tuple[Layer, Moments | None]]:
    """Each layer with what its inputs look like in the graph as it is by then; `whole`: more than their squares.

    None stands with a layer in a subgraph, one whose rows cannot be found, and one that sees what is not finite.
    """
    rounds = list(_rounds(graph, layers, _sizes(graph, layers, ctx), whole))
    for number, some in enumerate(rounds):
        seen = _look(graph, some, ctx, whole, (number, len(rounds)))
        for layer in some:
            moments = [seen[key] for key in _keys(graph, layer)]
            usable = moments and all(np.isfinite(m.squares).all() and m.squares.any() for m in moments)
            yield layer, _joined(moments) if usable else None


def _keys(graph: Graph, layer: Layer) -> list[Key]:
    """The inputs of the layer's operators; none where one of them cannot be seen."""
    keys = [(node.inputs[0].name, view) for node, view in zip(layer.nodes, layer.views, strict=True) if view]
    whole = len(keys) == len(layer.nodes) and all(node.scope is graph for node in layer.nodes)
    return list(dict.fromkeys(keys)) if whole else []


def _sizes(graph: Graph, layers: Sequence[Layer], ctx: Context) -> dict[str, int]:
    """Elements of the layers' inputs in the first batch, by name: the graph itself counts them."""
    twin = graph.copy()
    tensors, sizes = twin.tensors(), {}
    following = dict(zip(map(id, twin.nodes), [*twin.nodes[1:], None], strict=True))
    for name in dict.fromkeys(name for layer in layers for name, _ in _keys(graph, layer)):
        tensor, size = tensors[name], twin.variable(name + "_size")
        twin.add("Size", [tensor], [size], before=following[id(tensor.inputs[0])] if tensor.inputs else None)
        sizes[name] = size.name
    twin.tidy()
    found = ctx.evaluate(twin, next(iter(ctx.batches)), list(sizes.values()))
    return {name: int(found[size]) for name, size in sizes.items()}


def _rounds(graph: Graph, layers: Sequence[Layer], sizes: Mapping[str, int], whole: bool) -> Iterator[list[Layer]]:
    """Cuts the layers into runs of neighbours that fit the memory, at least one in each."""
    some: list[Layer] = []
    keys: dict[Key, int] = {}
    for layer in layers:
        own = dict.fromkeys(_keys(graph, layer), _nbytes(layer) if whole else 0)
        both = keys | own
        if some and (len(some) == LAYERS or sum(both.values()) + 4 * sum(sizes[n] for n in _names(both)) > MEMORY):
            yield some
            some, both = [], own
        some.append(layer)
        keys = both
    if some:
        yield some


def _nbytes(layer: Layer) -> int:
    """What the moments of a layer weigh: products, and rows of float32 to judge by."""
    group, columns = layer.layout.group, layer.columns
    return min(LARGEST, nbytes(group, columns)) + ROWS // JUDGING * group * columns * 4


def _names(keys: Iterable[Key]) -> list[str]:
    return list(dict.fromkeys(name for name, _ in keys))


def _look(
    graph: Graph, layers: Sequence[Layer], ctx: Context, whole: bool, place: tuple[int, int]
) -> dict[Key, Moments]:
    """The moments of the layers' inputs; `place` is the round's number and that of all, to tell how far it is."""
    seen = {
        key: Moments.empty(layer.layout.group, layer.columns, whole) for layer in layers for key in _keys(graph, layer)
    }
    batches, rng = min(len(ctx.batches), BATCHES), np.random.default_rng(ctx.seed)
    with ctx.evaluate.open(graph, _names(seen)) as run, np.errstate(all="ignore"):
        for number, feeds in enumerate(islice(ctx.batches, batches)):
            found = run(feeds)
            for (name, view), moments in seen.items():
                moments.add(view.rows(found[name], -(-ROWS // batches), rng), number, batches)
            ctx.progress("sparsify", place[0] * batches + number + 1, place[1] * batches)
    return seen


def _joined(moments: Sequence[Moments]) -> Moments:
    """Those of weights that are used more than once are sums."""
    products = sum((m.products for m in moments[1:]), moments[0].products)
    return Moments(products, [rows for m in moments for rows in m.held])
