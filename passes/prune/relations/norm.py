"""Normalisations, softmax and reductions: statistics over some axes, the others pass.

Sums tell nothing of a unit that is removed: exact. A mean, or the deviation of a LayerNormalization, is taken over what
is left: not exact, and recorded as a statistic. Statistics within the groups of a GroupNormalization freeze them.
"""

from __future__ import annotations

from optimizer.graph import Node
from optimizer.ops import attribute, axes
from passes.prune.coupling import Coupling
from passes.prune.relations.elementwise import broadcasts, same

SUMS = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
NEED_ALL = ("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd", "ArgMax", "ArgMin")


def batch_norm(c: Coupling, node: Node) -> bool:
    """One number of each kind a channel."""
    x = c.of(node.inputs[0])
    if x is None or len(x) < 2 or not same(c, node.inputs[0], node.outputs[0]) or len(node.outputs) > 1:
        return False
    _parameters(c, node)
    return True


def _parameters(c: Coupling, node: Node) -> None:
    x = c.of(node.inputs[0]) or []
    for tensor in node.inputs[1:]:
        own = c.of(tensor)
        c.tie(own[0] if own and len(own) == 1 else None, x[1])


def instance_norm(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    if x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    _parameters(c, node)
    c.hold(x[2:], f"{node.op} '{node.name}' normalises over it")
    return True


def group_norm(c: Coupling, node: Node) -> bool:
    """Whole groups are removed: a channel of every group would change the group's statistics."""
    x, groups = c.of(node.inputs[0]), int(attribute(c.graph, node, "num_groups"))
    if x is None or x[1] is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    outer, inner = c.factors(x[1], [groups, x[1].size // groups])
    c.hold([inner, *x[2:]], f"{node.op} '{node.name}' normalises over it")
    for tensor in node.inputs[1:]:
        own = c.of(tensor)
        one = own[0] if own and len(own) == 1 else None
        c.tie(one, outer if one is not None and one.size == groups else x[1])
    return True


def layer_norm(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    first = attribute(c.graph, node, "axis")
    if x is None or first is None or any(t.name for t in node.outputs[1:]):  # its mean and deviation
        return False
    if not same(c, node.inputs[0], node.outputs[0]):
        return False
    for axis in range(int(first) % len(x), len(x)):
        c.average(node, 0, axis)
    return broadcasts(c, [t for t in node.inputs[1:] if t.name], node.outputs[0])


def lp_norm(c: Coupling, node: Node) -> bool:
    """A norm is the root of a sum."""
    x = c.of(node.inputs[0])
    if x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    c.contract(node, 0, int(attribute(c.graph, node, "axis")) % len(x))
    return True


def along(c: Coupling, node: Node) -> bool:
    """Softmax and its like need all of one axis (of all from it on, before operator set 13)."""
    x, axis = c.of(node.inputs[0]), attribute(c.graph, node, "axis")
    if x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    first = (-1 if axis is None else int(axis)) % len(x)
    held = x[first:] if c.graph.opset < 13 else x[first : first + 1]
    c.hold(held, f"{node.op} '{node.name}' needs all of it")
    return True


def cumulate(c: Coupling, node: Node) -> bool:
    axis = c.graph.array(node.inputs[1])
    x = c.of(node.inputs[0])
    if axis is None or x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    c.hold([x[int(axis.reshape(-1)[0])]], f"{node.op} '{node.name}' needs all of it")
    return True


def top(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    if x is None or any(c.of(out) is None for out in node.outputs if out.name):
        return False
    along = int(attribute(c.graph, node, "axis")) % len(x)
    for made in (c.of(out) or [] for out in node.outputs):
        for axis, (term, other) in enumerate(zip(x, made, strict=False)):
            if axis == along:
                c.hold([term, other], f"{node.op} '{node.name}' needs all of it")
            else:
                c.tie(term, other)
    return True


def local_response(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    if x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    c.hold([x[1]], f"{node.op} '{node.name}' needs its neighbours")
    return True


def mean_variance(c: Coupling, node: Node) -> bool:
    x = c.of(node.inputs[0])
    if x is None or not same(c, node.inputs[0], node.outputs[0]):
        return False
    for axis in attribute(c.graph, node, "axes") or (0, 2, 3):
        c.hold([x[axis]], f"{node.op} '{node.name}' normalises over it")
    return True


def reduce(c: Coupling, node: Node) -> bool:
    x, y = c.of(node.inputs[0]), c.of(node.outputs[0])
    if x is None or y is None:
        return False
    given = axes(c.graph, node, len(x))
    if node.op.startswith("Arg"):
        given = (int(attribute(c.graph, node, "axis")) % len(x),)
    if given is None:
        return False
    if not given and attribute(c.graph, node, "noop_with_empty_axes"):
        return same(c, node.inputs[0], node.outputs[0])
    reduced = given or tuple(range(len(x)))
    for axis in reduced:
        if node.op in SUMS:
            c.contract(node, 0, axis)
        elif node.op == "ReduceMean":
            c.average(node, 0, axis)
        else:
            c.hold([x[axis]], f"{node.op} '{node.name}' needs all of it")
    left = [axis for axis in range(len(x)) if axis not in reduced]
    kept = left if attribute(c.graph, node, "keepdims") else range(len(left))
    for axis, made in zip(left, kept, strict=True):
        c.tie(x[axis], y[made])
    return True


RELATIONS = {
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "LpNormalization": lp_norm,
    "LRN": local_response,
    "MeanVarianceNormalization": mean_variance,
    "Softmax": along,
    "LogSoftmax": along,
    "Hardmax": along,
    "CumSum": cumulate,
    "TopK": top,
    **dict.fromkeys((*SUMS, *NEED_ALL, "ReduceMean"), reduce),
}
