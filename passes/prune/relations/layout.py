"""Operators that move elements: axes are joined, split, permuted, cut and put together.

A Reshape factors its axes: between the places where the products of both shapes agree, the dims of either side are
products of the same factors. So a head and a dimension of a head are found from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.graph import Node, Tensor
from optimizer.ops import attribute, axes
from passes.prune.atoms import Atom, Term, chain, freeze, product
from passes.prune.coupling import Coupling
from passes.prune.relations.elementwise import broadcasts, same
from passes.shapes.algebra import Expr

Places = NDArray[np.int64]  # axes
ELSEWHERE = -1  # no axis of the tensor in question
TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3, "ConstantOfShape": 0}  # the input with the result's shape
Block = tuple[list[int], list[int]]  # axes of the input and of the output that hold the same elements


def reshape(c: Coupling, node: Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    sources, results = c.dims(x), c.dims(y)
    if sources is None or results is None or c.of(x) is None or c.of(y) is None:
        return False
    for before, after in blocks(sources, results):
        _same_elements(c, _at(c, x, before), _at(c, y, after), f"{node.op} '{node.name}' divides it unevenly")
    return True


def _at(c: Coupling, tensor: Tensor, places: Sequence[int]) -> list[Term | None]:
    terms = c.of(tensor)
    assert terms is not None
    return [terms[i] for i in places]


def blocks(sources: Sequence[Expr], results: Sequence[Expr]) -> Iterator[Block]:
    """The smallest runs of dims with equal products, from the first on, then from the last on; the rest is one run.

    Elements keep their order: where the first dims hold as many, or the last ones, they hold the same.
    """
    i = j = 0
    for before, after in _runs(sources, results):
        yield list(range(i, i + before)), list(range(j, j + after))
        i, j = i + before, j + after
    m, n = len(sources), len(results)
    for before, after in _runs(sources[i:][::-1], results[j:][::-1]):
        yield list(range(m - before, m)), list(range(n - after, n))
        m, n = m - before, n - after
    if i < m or j < n:
        yield list(range(i, m)), list(range(j, n))


def _runs(sources: Sequence[Expr], results: Sequence[Expr]) -> Iterator[tuple[int, int]]:
    """The lengths of the smallest runs of equal products, from the first on, as far as there are any."""
    i = j = 0
    while i < len(sources) and j < len(results):
        start = i, j
        a, b = sources[i], results[j]
        i, j = i + 1, j + 1
        while a != b:
            if i < len(sources) and (b.over(a) is not None or j == len(results)):
                a, i = a * sources[i], i + 1
            elif j < len(results):
                b, j = b * results[j], j + 1
            else:
                return
        yield i - start[0], j - start[1]


def _same_elements(c: Coupling, a: list[Term | None], b: list[Term | None], why: str) -> None:
    if len(a) == len(b) == 1:
        c.tie(a[0], b[0])
    elif None in a or None in b:
        c.hold([*a, *b], why)
    else:
        one, other = product(*[t for t in a if t is not None]), product(*[t for t in b if t is not None])
        c.tie(one, other, why)


def transpose(c: Coupling, node: Node) -> bool:
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    if x is None or y is None:
        return False
    order = attribute(c.graph, node, "perm") or range(len(x))[::-1]
    for made, taken in enumerate(order):
        c.tie(x[taken], y[made])
    return True


def squeeze(c: Coupling, node: Node) -> bool:
    """The axes that stay, in order; Unsqueeze is the same with the sides exchanged."""
    inner, outer = (0, 1) if node.op == "Unsqueeze" else (1, 0)
    sides = [c.of(node.inputs[0]), c.of(node.outputs[0])]
    few, many = sides[inner], sides[outer]
    if few is None or many is None:
        return False
    gone = axes(c.graph, node, len(many))
    if gone == ():
        sizes = c.sizes(node.inputs[0]) or []
        gone = tuple(i for i, n in enumerate(sizes) if n == 1)
    if gone is None or len(many) - len(gone) != len(few):
        return False
    left = [term for i, term in enumerate(many) if i not in gone]
    for one, other in zip(few, left, strict=True):
        c.tie(one, other)
    return True


def concat(c: Coupling, node: Node) -> bool:
    tensors = [t for t in node.inputs if t.name]
    parts, y = [c.of(t) for t in tensors], c.of(node.outputs[0])
    if y is None or any(p is None or len(p) != len(y) for p in parts):
        return False
    known = [p for p in parts if p is not None]
    along = int(attribute(c.graph, node, "axis")) % len(y)
    for axis, made in enumerate(y):
        if axis != along:
            for part in known:
                c.tie(part[axis], made)
    pieces = [part[along] for part in known]
    if None in pieces or any(c.sizes(t) is None for t in tensors):
        c.hold([*pieces, y[along]], f"{node.op} '{node.name}': a part's size is not known")
    else:
        c.tie(chain(*[piece for piece in pieces if piece is not None]), y[along])
    return True


def split(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    made = [c.of(t) for t in node.outputs]
    if x is None or any(m is None or len(m) != len(x) for m in made):
        return False
    known = [m for m in made if m is not None]
    along = int(attribute(c.graph, node, "axis")) % len(x)
    for axis, term in enumerate(x):
        if axis != along:
            for out in known:
                c.tie(term, out[axis])
    pieces = [out[along] for out in known]
    given = len(node.inputs) > 1 and node.inputs[1].name
    if None in pieces or x[along] is None or (given and c.graph.array(node.inputs[1]) is None):
        c.hold([*pieces, x[along]], f"{node.op} '{node.name}': a part's size is not known")
    else:
        c.tie(chain(*[piece for piece in pieces if piece is not None]), x[along])
    return True


def slice_(c: Coupling, node: Node) -> bool:
    """A run of an axis is a part of it; every s-th index is one index of an inner factor of size s."""
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    cuts = None if x is None else sections(c, node)
    if x is None or y is None or cuts is None:
        return False
    why = f"{node.op} '{node.name}' takes some of it"
    for axis, (inner, made) in enumerate(zip(x, y, strict=True)):
        if axis not in cuts:
            c.tie(inner, made)
            continue
        start, end, step = cuts[axis]
        if inner is None or made is None:
            c.hold([inner, made], why)
            continue
        size = inner.size
        start, end, step = slice(start, end, step).indices(size)
        if (start, step) == (0, 1) and end >= size:
            c.tie(inner, made)
        elif step == 1 and made.size == end - start:
            c.tie(c.split(inner, [start, made.size, size - end])[1], made, why)
        elif step > 1 and size % step == 0 and start < step and made.size == size // step:
            outer, rest = c.factors(inner, [size // step, step])
            c.hold([rest], why)
            c.tie(outer, made, why)
        else:
            c.hold([inner, made], why)
    return True


def sections(c: Coupling, node: Node) -> dict[int, tuple[int, int, int]] | None:
    """(start, end, step) by axis, as given; None where they are computed."""
    x = c.of(node.inputs[0])
    if x is None:
        return None
    if "starts" in node.attrs:
        given = [node.attrs.get(name) for name in ("starts", "ends", "axes")]
    else:
        arrays = [c.graph.array(t) if t.name else None for t in node.inputs[1:]]
        if any(t.name and a is None for t, a in zip(node.inputs[1:], arrays, strict=True)):
            return None
        given = [None if a is None else a.reshape(-1).tolist() for a in arrays]
    starts, ends, which, steps, *_ = [*given, None, None]
    if starts is None or ends is None:
        return None
    rows = zip(which or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True)
    return {int(axis) % len(x): (int(start), int(end), int(step)) for axis, start, end, step in rows}


def gather(c: Coupling, node: Node) -> bool:
    """The rows of a table are data, its columns pass. Rows that constants pick in runs are parts of the axis."""
    x, places, y = c.of(node.inputs[0]), c.of(node.inputs[1]), c.of(node.outputs[0])
    if x is None or places is None or y is None:
        return False
    along = int(attribute(c.graph, node, "axis")) % len(x)
    for axis, term in enumerate(x):
        if axis != along:
            c.tie(term, y[axis if axis < along else axis + len(places) - 1])
    inner, picked = x[along], c.graph.array(node.inputs[1])
    runs = None if inner is None or picked is None or picked.ndim != 1 else _in_runs(picked % inner.size)
    if inner is None or not runs:
        c.hold([inner, *places, *y[along : along + len(places)]], f"{node.op} '{node.name}' picks indices of it")
        return True
    c.hold(places, f"{node.op} '{node.name}' takes numbers from it")
    parts = [c.split(inner, [start, size, inner.size - start - size])[1] for start, size in runs]
    c.tie(chain(*[part for part in parts if part is not None]), y[along])
    return True


def _in_runs(picked: Places) -> list[tuple[int, int]]:
    """(first, length) of runs of successive indices; none where they are no runs to speak of."""
    ends = np.flatnonzero(np.diff(picked) != 1) + 1
    runs = [(int(run[0]), len(run)) for run in np.split(picked, ends) if len(run)]
    return runs if 2 * len(runs) <= len(picked) else []


def expand(c: Coupling, node: Node) -> bool:
    """An axis of size 1 is repeated as often as needed; the others stay."""
    return None not in (c.sizes(node.inputs[1]) or [None]) and broadcasts(c, [node.inputs[0]], node.outputs[0])


def fill(c: Coupling, node: Node) -> bool:
    """One number everywhere."""
    return c.of(node.outputs[0]) is not None


def tile(c: Coupling, node: Node) -> bool:
    x, y, repeats = c.of(node.inputs[0]), c.of(node.outputs[0]), c.graph.array(node.inputs[1])
    if x is None or y is None or repeats is None:
        return False
    for inner, made, times in zip(x, y, repeats.tolist(), strict=True):
        if times == 1:
            c.tie(inner, made)
        elif inner is None or made is None or times < 1:
            c.hold([inner, made], f"{node.op} '{node.name}' repeats it")
        else:
            outer = Atom(times)
            freeze(outer, f"{node.op} '{node.name}' repeats it")
            c.tie(product(outer, inner), made)
    return True


def depth_to_space(c: Coupling, node: Node) -> bool:
    """Channels are (b, b, C) in mode DCR and (C, b, b) in mode CRD; SpaceToDepth makes the first."""
    deep, flat = node.inputs[0], node.outputs[0]
    if node.op == "SpaceToDepth":
        deep, flat = flat, deep
    x, y = c.of(deep), c.of(flat)
    b = int(attribute(c.graph, node, "blocksize"))
    if x is None or y is None or x[1] is None or y[1] is None:
        return False
    c.tie(x[0], y[0])
    why = f"{node.op} '{node.name}' makes places of it"
    last = attribute(c.graph, node, "mode") == "CRD"
    found = c.factors(x[1], [y[1].size, b, b] if last else [b, b, y[1].size])
    c.hold([*(found[1:] if last else found[:2]), *x[2:], *y[2:]], why)
    c.tie(found[0] if last else found[2], y[1])
    return True


def shape(c: Coupling, node: Node) -> bool:
    """A size that makes an axis of another tensor follows: the axes are the same. One that is read otherwise stays."""
    x = c.of(node.inputs[0])
    if x is None:
        return False
    taken = slice(attribute(c.graph, node, "start"), attribute(c.graph, node, "end"))
    pending = [(node.outputs[0], np.arange(len(x))[taken])]
    while pending:
        tensor, places = pending.pop()
        why = f"its size is read by {node.op} '{node.name}'"
        if c.graph.is_output(tensor):
            c.hold([x[i] for i in places if i != ELSEWHERE], why)
        for reader in dict.fromkeys(tensor.outputs):
            passed = _passed(c, reader, tensor, places)
            if passed is not None:
                pending.append((reader.outputs[0], passed))
            elif not _made(c, reader, tensor, places, x):
                c.hold([x[i] for i in places if i != ELSEWHERE], why)
    return True


def _passed(c: Coupling, reader: Node, sizes: Tensor, places: Places) -> Places | None:
    """Whose sizes the elements of the reader's result are, in order; None where they are none."""
    if reader.scope is not c.graph:
        return None
    if reader.op == "Concat":
        lengths = [(c.sizes(t) or [None])[0] for t in reader.inputs]
        own = [
            places if t is sizes else np.full(n or 0, ELSEWHERE) for t, n in zip(reader.inputs, lengths, strict=True)
        ]
        return None if None in lengths else np.concatenate(own)
    if [t is sizes for t in reader.inputs].index(True) > 0:
        return None
    if reader.op == "Gather" and (index := c.graph.array(reader.inputs[1])) is not None:
        return places[index.reshape(-1)]
    if reader.op == "Slice" and (cuts := sections(c, reader)) is not None:
        return places[slice(*cuts[0])] if 0 in cuts else places
    return places if reader.op in ("Cast", "Identity", "Squeeze", "Unsqueeze") else None


def _made(c: Coupling, reader: Node, sizes: Tensor, places: Places, x: list[Term | None]) -> bool:
    """Whether the sizes are those of what the reader makes; its axes are then tied to those they come from."""
    at = [position for position, tensor in enumerate(reader.inputs) if tensor is sizes]
    if reader.scope is not c.graph or at != [TARGETS.get(reader.op)]:
        return False
    y = c.of(reader.outputs[0])
    if y is None or len(places) > len(y) or attribute(c.graph, reader, "axes") is not None:
        return False
    for place, made in zip(places, y[len(y) - len(places) :], strict=True):
        if place != ELSEWHERE and x[place] is not None:
            c.tie(x[place], made)
    return True


def size(c: Coupling, node: Node) -> bool:
    c.freeze(node.inputs, f"its size is read by {node.op} '{node.name}'")
    return True


def triangle(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    if x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    c.hold(x[-2:], f"{node.op} '{node.name}' takes a triangle of it")
    return True


RELATIONS = {
    "Reshape": reshape,
    "Flatten": reshape,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": squeeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Expand": expand,
    "ConstantOfShape": fill,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": depth_to_space,
    "Shape": shape,
    "Size": size,
    "Trilu": triangle,
}
