"""Elements of integer results as expressions: what Shape, Gather, Concat, Mul, Where, ... do to shape vectors (C4).

Each rule gives the values of an operator's first output, or None where it cannot tell. They are numpy arrays of `Expr`,
so indexing and broadcasting are numpy's own. Bools are 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

import numpy as np

from optimizer import shapes
from optimizer.graph import Node
from optimizer.ops import attribute
from passes.shapes.algebra import Expr, choose, divide, equal, larger, less, number, product, smaller
from passes.shapes.facts import MOST, Facts, Values


def array_of(items: Sequence[Expr], shape: Sequence[int]) -> Values:
    made = np.empty(len(items), object)
    made[:] = items
    return made.reshape(tuple(shape))


Rule = Callable[[Node, Facts], Values | None]


def _inputs(node: Node, facts: Facts) -> list[Values] | None:
    found = [facts.values(t) for t in node.inputs]
    return None if any(v is None for v in found) else [v for v in found if v is not None]


def _elementwise(combine: Callable[..., Expr]) -> Rule:
    function = np.frompyfunc(combine, combine.__code__.co_argcount, 1)

    def rule(node: Node, facts: Facts) -> Values | None:
        values = _inputs(node, facts)
        if values is None or facts.graph.opset < 7:
            return None
        return np.asarray(function(*values), object)

    return rule


def _running(combine: Callable[[Expr, Expr], Expr]) -> Rule:
    """Operators of any number of operands."""
    function = np.frompyfunc(combine, 2, 1)

    def rule(node: Node, facts: Facts) -> Values | None:
        values = _inputs(node, facts)
        return None if not values else np.asarray(reduce(function, values), object)

    return rule


def _numbers(values: Values | None) -> list[int] | None:
    """Plain integers, where every element is one."""
    if values is None:
        return None
    found = [e.value for e in values.reshape(-1)]
    return None if None in found else [int(v) for v in found if v is not None]


def _shape(node: Node, facts: Facts) -> Values | None:
    dims = facts.dims(node.inputs[0])
    if dims is None:
        return None
    if node.op == "Size":
        return array_of([product(dims)], ())
    cut = dims[attribute(facts.graph, node, "start") or 0 : attribute(facts.graph, node, "end")]
    return array_of(cut, (len(cut),))


def _gather(node: Node, facts: Facts) -> Values | None:
    data, places = facts.values(node.inputs[0]), facts.values(node.inputs[1])
    indices, axis = _numbers(places), int(attribute(facts.graph, node, "axis"))
    if data is None or places is None or indices is None:
        return None
    if any(not -data.shape[axis] <= i < data.shape[axis] for i in indices):
        return None
    return np.asarray(data.take(np.array(indices, np.int64).reshape(places.shape), axis=axis), object)


def _slice(node: Node, facts: Facts) -> Values | None:
    data = facts.values(node.inputs[0])
    starts, ends, where, steps = (_list(node, facts, i) for i in (1, 2, 3, 4))
    if data is None or not starts or not ends:
        return None
    given = [len(t.name) > 0 for t in node.inputs] + [False] * 5
    if (given[3] and where is None) or (given[4] and steps is None):
        return None
    where, steps = where or list(range(len(starts))), steps or [1] * len(starts)
    if min(steps) < 1:
        return None
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, where, steps, strict=True):
        index[axis] = slice(start, end, step)
    return data[tuple(index)]


def _list(node: Node, facts: Facts, position: int) -> list[int] | None:
    return None if len(node.inputs) <= position else _numbers(facts.values(node.inputs[position]))


def _reshaped(node: Node, facts: Facts) -> Values | None:
    """The same elements in the shape that inference found for the result."""
    data, known = facts.values(node.inputs[0]), shapes.static(node.outputs[0])
    return None if data is None or known is None or data.size != math.prod(known) else data.reshape(known)


def _cast(node: Node, facts: Facts) -> Values | None:
    values, source, to = facts.values(node.inputs[0]), node.inputs[0].dtype, node.outputs[0].dtype
    if values is None or np.dtype(to) == np.dtype(source) or np.dtype(source).kind == "b":
        return values
    wraps = any(e.data for e in values.reshape(-1))  # in its old width, or in the new one
    return None if wraps or np.dtype(to).kind == "b" else values


def _concat(node: Node, facts: Facts) -> Values | None:
    values = _inputs(node, facts)
    return None if not values else np.concatenate(values, axis=int(attribute(facts.graph, node, "axis") or 0))


def _filled(node: Node, facts: Facts) -> Values | None:
    size = _numbers(facts.values(node.inputs[0]))
    value = node.attrs.get("value")
    if size is None or value is None or min(size, default=1) < 0 or math.prod(size) > MOST:
        return None
    item = value if isinstance(value, np.ndarray) else facts.graph.array(value)
    assert item is not None
    return array_of([number(item.reshape(-1)[0])] * math.prod(size), size)


def _expand(node: Node, facts: Facts) -> Values | None:
    data, target = facts.values(node.inputs[0]), _list(node, facts, 1)
    if data is None or target is None or math.prod(target) > MOST or min(target, default=1) < 0:
        return None
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(target)))


def _range(node: Node, facts: Facts) -> Values | None:
    ends = _inputs(node, facts)
    bounds = [_numbers(v) for v in ends] if ends is not None else [None]
    if any(b is None for b in bounds):
        return None
    start, stop, step = (b[0] for b in bounds if b is not None)
    if step == 0 or abs((stop - start) // step) > MOST:
        return None
    items = [number(i) for i in range(start, stop, step)]
    return array_of(items, (len(items),))


def _reduced(combine: Callable[[Sequence[Expr]], Expr]) -> Rule:
    """Over all elements of a vector."""

    def rule(node: Node, facts: Facts) -> Values | None:
        data, known = facts.values(node.inputs[0]), shapes.static(node.outputs[0])
        if data is None or data.ndim != 1 or known not in ((), (1,)):
            return None
        return array_of([combine(list(data))], known)

    return rule


def _parts(node: Node, facts: Facts) -> Values | None:
    """The first output of Split; the others follow from their own shapes."""
    data = facts.values(node.inputs[0])
    sizes = [shapes.static(t) for t in node.outputs]
    if data is None or data.ndim != 1 or any(s is None for s in sizes):
        return None
    ends = np.cumsum([0, *(s[0] for s in sizes if s)]).tolist()
    cuts = [data[a:b] for a, b in pairwise(ends)]
    for out, cut in zip(node.outputs, cuts, strict=True):
        facts.note(out, cut)
    return cuts[0]


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _subtract(a: Expr, b: Expr) -> Expr:
    return a - b


def _multiply(a: Expr, b: Expr) -> Expr:
    return a * b


def _either(a: Expr, b: Expr) -> Expr:
    return a + b - a * b


def _not(a: Expr) -> Expr:
    return number(1) - a


def _negative(a: Expr) -> Expr:
    return -a


def _greater(a: Expr, b: Expr) -> Expr:
    return less(b, a)


def _at_least(a: Expr, b: Expr) -> Expr:
    return _not(less(a, b))


def _at_most(a: Expr, b: Expr) -> Expr:
    return _not(less(b, a))


RULES: dict[str, Rule] = {
    **dict.fromkeys(["Shape", "Size"], _shape),
    **dict.fromkeys(["Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten"], _reshaped),
    "Add": _elementwise(_add),
    "And": _elementwise(_multiply),  # bools are 0 and 1
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _elementwise(divide),
    "Equal": _elementwise(equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _elementwise(_greater),
    "GreaterOrEqual": _elementwise(_at_least),
    "Less": _elementwise(less),
    "LessOrEqual": _elementwise(_at_most),
    "Max": _running(larger),
    "Min": _running(smaller),
    "Mul": _elementwise(_multiply),
    "Neg": _elementwise(_negative),
    "Not": _elementwise(_not),
    "Or": _elementwise(_either),
    "Range": _range,
    "ReduceProd": _reduced(product),
    "ReduceSum": _reduced(lambda items: sum(items, start=number(0))),
    "Slice": _slice,
    "Split": _parts,
    "Sub": _elementwise(_subtract),
    "Where": _elementwise(choose),
}
