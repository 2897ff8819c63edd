"""A factor on one part of a packed product moves into that part's columns of the weights.

    part_i(move(x W + b)) c  =  part_i(move(x (W f) + b f))          f = c for the columns that part i holds, else 1

Queries, keys and values often come of one product: its N columns become dims [.., d1, d2, ..], together N, the axes
change places, and a Split or Gathers take the parts. Row-major order says which columns those are, whatever the dims
before them; no other part holds them, so no other reader sees the factor. It is one number, so it passes whatever moves
the part, and the product with another tensor (a quotient of that stays, for runtimes know attention by it). Weights
change under several readers here, so it is no rule but a function of the graph. (W15 of the usual catalogues.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from optimizer.graph import Array, Constant, Dim, Graph, Node, Tensor
from optimizer.io import nbytes
from optimizer.ops import attribute, scalar
from optimizer.ranges import is_float
from optimizer.rewrite import SLACK
from passes.fuse.arrays import narrow, rank, wide
from passes.fuse.layout import permutation

MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def scale_packed(graph: Graph) -> int:
    """Moves every such factor; returns how many."""
    return sum(_scale(graph, node) for node in graph.walk() if node.op in ("Mul", "Div") and not node.domain)


def _scale(graph: Graph, root: Node) -> int:
    given = [scalar(graph, t) for t in root.inputs]
    place = 0 if given[1] is None else 1
    x, c = root.inputs[1 - place], given[place]
    if not c or not math.isfinite(c) or (root.op == "Div" and place == 0) or not is_float(x):
        return 0
    if len(root.inputs[place].shape) > (rank(x) or 0):
        return 0
    for part in _parts(graph, x, root):
        if _fold(graph, part, c if root.op == "Mul" else 1 / c):
            graph.bypass(root, x)
            return 1
    return 0


def _maker(graph: Graph, tensor: Tensor, reader: Node) -> Node | None:
    """The node that makes the tensor, where nothing but `reader` reads it."""
    node: Node | None = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.domain or node.scope is not reader.scope or not graph.only_feeds(tensor, reader):
        return None
    return node


def _parts(graph: Graph, x: Tensor, root: Node) -> Iterator[Tensor]:
    """The parts that a factor on `x` may move to, through what moves them."""
    reader, node = root, _maker(graph, x, root)
    if node is not None and node.op == "MatMul" and root.op == "Mul":
        for factor in node.inputs:
            yield from _parts(graph, factor, node)
        return
    while node is not None and node.op in MOVES:
        x, reader = node.inputs[0], node
        node = _maker(graph, x, reader)
    if node is not None and node.op in ("Gather", "Split"):
        yield x


def _fold(graph: Graph, part: Tensor, c: float) -> bool:
    """Scales the columns of the product that the part holds; False where something is in the way."""
    taken = _taken(graph, part)
    source: Tensor = part.inputs[0].inputs[0]
    node = source.inputs[0] if source.inputs and source.inputs[0].scope is part.inputs[0].scope else None
    if taken is None or node is None:
        return False
    axis, places = taken
    if node.op == "Transpose" and not node.domain and (perm := permutation(node)) is not None:
        axis, source = perm[axis], node.inputs[0]
        node = _maker(graph, source, node)
    if node is None or node.op != "Reshape" or node.domain:
        return False
    linear = _maker(graph, node.inputs[0], node)
    return linear is not None and _scale_columns(graph, linear, _factors(source, axis, places, c))


def _taken(graph: Graph, part: Tensor) -> tuple[int, list[int]] | None:
    """The axis along which a part is cut and the places it takes; None where another reader may take them too."""
    node = part.inputs[0]
    x, axis = node.inputs[0], int(attribute(graph, node, "axis"))
    if not x.shape or not isinstance(dim := x.shape[axis], int) or graph.is_output(x):
        return None
    axis %= len(x.shape)
    if node.op == "Split":
        sizes = [d for t in node.outputs if t.shape and isinstance(d := t.shape[axis], int)]
        if not graph.only_feeds(x, node) or len(sizes) < len(node.outputs) or sum(sizes) != dim:
            return None
        at = next(i for i, t in enumerate(node.outputs) if t is part)
        return axis, list(range(sum(sizes[:at]), sum(sizes[: at + 1])))
    own = _gathered(graph, node, x, axis)
    others = [_gathered(graph, reader, x, axis) for reader in dict.fromkeys(x.outputs) if reader is not node]
    if own is None or any(places is None or set(own) & set(places) for places in others):
        return None
    return axis, own


def _gathered(graph: Graph, node: Node, x: Tensor, axis: int) -> list[int] | None:
    """The places along an axis of `x` that a Gather takes; None where that is not all that a node does with it."""
    if node.op != "Gather" or node.domain or node.inputs[0] is not x:
        return None
    indices = graph.array(node.inputs[1])
    if indices is None or int(attribute(graph, node, "axis")) % len(x.shape) != axis:
        return None
    return [int(i) % x.shape[axis] for i in indices.reshape(-1)]


def _factors(moved: Tensor, axis: int, places: list[int], c: float) -> dict[int, Array]:
    """What each column is multiplied by, by the number of columns that the last dims of `moved` may come of."""
    dims: list[Dim] = list(moved.shape or ())
    found = {}
    for first in range(axis, -1, -1):
        inner = [d for d in dims[first:] if isinstance(d, int)]
        if len(inner) < len(dims) - first:
            break
        factors = np.ones(inner)
        factors.swapaxes(0, axis - first)[places] = c
        found[factors.size] = factors.reshape(-1)
    return found


def _scale_columns(graph: Graph, linear: Node, factors: Mapping[int, Array]) -> bool:
    """Scales the columns of x W, or of x W + b, unless that would keep a second large W in the file."""
    product, bias = linear, next((i for i, t in enumerate(linear.inputs) if graph.is_constant(t)), 0)
    if linear.op == "Add":
        made = _maker(graph, linear.inputs[1 - bias], linear)
        if made is None:
            return False
        product = made
    if product.op != "MatMul" or product.domain:
        return False
    held = product.inputs[1]
    if not isinstance(held, Constant) or not (graph.only_feeds(held, product) or nbytes(held) <= SLACK):
        return False
    w, b = graph.array(held), graph.array(linear.inputs[bias]) if linear.op == "Add" else None
    if w is None or w.ndim != 2 or w.dtype.kind in "iu" or w.shape[1] not in factors:
        return False
    if linear.op == "Add" and (b is None or b.ndim > 1):
        return False
    by = factors[w.shape[1]]
    weight = narrow(wide(w) * by.astype(wide(w).dtype), w.dtype, axis=1)
    shift = None if b is None else narrow(wide(b) * by, b.dtype)
    if weight is None or (b is not None and shift is None):
        return False
    graph.set_input(product, 1, graph.constant(weight, held.name))
    if shift is not None:
        graph.set_input(linear, bias, graph.constant(shift, linear.inputs[bias].name))
    return True
