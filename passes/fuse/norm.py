"""LayerNormalization (from 17; Ba et al. 2016) and RMSNormalization (from 23; Zhang & Sennrich 2019) from their parts.

    d = x - mean(x)      y = d / sqrt(mean(d^2) + epsilon)      y * scale + bias
                         y = x / sqrt(mean(x^2) + epsilon)      y * scale

with the means over the last dims, kept. Small rules compose: the core becomes a normalisation with a scale of ones, a
constant factor multiplies the scale, a constant summand becomes the bias, and Casts to float32 and back around a half
precision input go, for that is what stash_type=1 says. (E15, E16 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Node, Tensor
from optimizer.match import Match
from optimizer.ops import axes, scalar
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank, narrow, rank, wide

DTYPES = ("float16", "float32")
LARGEST = 1 << 14  # elements: a scale of ones may cost 64 KiB, for the five nodes and three passes it replaces


def _spellings(x: str) -> list[str]:
    """x / sqrt(mean(x^2) + eps), the first `x` with what makes it, the others by its label."""
    label = x.partition("=")[0]
    sums = [f"Add(ReduceMean({square}, a?), eps)" for square in (f"Pow({label}, 2)", f"Mul({label}, {label})")]
    roots = [root.format(one) for one in sums for root in ("Sqrt({})", "Pow({}, 0.5)")]
    forms = [f for r in roots for f in (f"Div({x}, {r})", f"Mul({x}, Reciprocal({r}))", f"Mul({x}, Div(1, {r}))")]
    return [*forms, *(f"Mul({x}, Pow({one}, -0.5))" for one in sums)]


def _core(m: Match, make: Draft, op: str) -> Tensor | None:
    x, epsilon = m["x"], scalar(make.graph, m["eps"])
    dims = _averaged(m, make, x)
    if dims is None or epsilon is None or not epsilon >= 0 or not has_dtype(x, *DTYPES) or not keeps_rank(m, x):
        return None
    ones = make.constant(np.ones(dims, x.dtype), "scale")
    return make.node(op, x, ones, attrs={"axis": -len(dims), "epsilon": float(epsilon), "stash_type": 1})


def _averaged(m: Match, make: Draft, x: Tensor) -> tuple[int, ...] | None:
    """The dims that every matched ReduceMean averages: the last ones of x, static, kept; None for anything else."""
    n = rank(x)
    means = [node for node in m.nodes if node.op == "ReduceMean"]
    over = {axes(make.graph, node, n) for node in means}
    if n is None or len(over) != 1 or not all(make.attr(node, "keepdims") for node in means):
        return None
    (found,) = over
    if not found or found != tuple(range(n - len(found), n)):
        return None
    dims = tuple(x.shape[-len(found) :])
    return dims if all(isinstance(d, int) for d in dims) and 0 < np.prod(dims) <= LARGEST else None


@rule(*_spellings("d=Sub(x, ReduceMean(x, m?))"), may_grow=True, since=17)
def layer_norm(m: Match, make: Draft) -> Tensor | None:
    return _core(m, make, "LayerNormalization")


@rule(*_spellings("x"), may_grow=True, since=23)
def rms_norm(m: Match, make: Draft) -> Tensor | None:
    return _core(m, make, "RMSNormalization")


def _normalised(make: Draft, norm: Node, c: Tensor) -> tuple[Array, list[int]] | None:
    """A constant operand of a normalisation's result, broadcast to the normalised dims; None where it is wider (G3)."""
    x, values = norm.inputs[0], make.array(c)
    if values is None or x.shape is None or values.ndim > len(x.shape):
        return None
    first = make.attr(norm, "axis") % len(x.shape)
    dims = x.shape[first:]
    shape = (1,) * (len(x.shape) - values.ndim) + values.shape
    if not all(isinstance(d, int) for d in dims) or any(d != 1 for d in shape[:first]):
        return None
    if any(d not in (1, n) for d, n in zip(shape[first:], dims, strict=True)):
        return None
    return np.broadcast_to(values.reshape(shape[first:]), dims), dims


@rule("Mul(LayerNormalization|RMSNormalization(x, s, b?), c)")
def norm_mul(m: Match, make: Draft) -> Tensor | None:
    norm, scale, bias = m.node("LayerNormalization|RMSNormalization"), make.array(m["s"]), make.array(m.get("b"))
    found = _normalised(make, norm, m["c"])
    if found is None or scale is None or (m.get("b") is not None and bias is None):
        return None
    factor, dims = found
    made = [
        None if a is None else narrow(wide(np.broadcast_to(a, dims)) * wide(factor), a.dtype) for a in (scale, bias)
    ]
    if made[0] is None or (made[1] is None and bias is not None):
        return None
    constants = [make.constant(a, hint) for a, hint in zip(made, ("scale", "bias"), strict=True) if a is not None]
    return make.node(norm.op, m["x"], *constants, attrs=norm.attrs)


@rule("Add(LayerNormalization(x, s, b?), c)")
def norm_add(m: Match, make: Draft) -> Tensor | None:
    norm, bias = m.node("LayerNormalization"), make.array(m.get("b"))
    found = _normalised(make, norm, m["c"])
    if found is None or (m.get("b") is not None and bias is None):
        return None
    shift, dims = found
    total = shift if bias is None else narrow(wide(np.broadcast_to(bias, dims)) + wide(shift), shift.dtype)
    if total is None:
        return None
    return make.node("LayerNormalization", m["x"], m["s"], make.constant(total, "bias"), attrs=norm.attrs)


@rule("Cast(LayerNormalization|RMSNormalization(Cast(x), s, b?))")
def norm_cast(m: Match, make: Draft) -> Tensor | None:
    x, norm = m["x"], m.node("LayerNormalization|RMSNormalization")
    if not has_dtype(x, "float16") or not has_dtype(m.root.outputs[0], "float16"):
        return None
    if not has_dtype(norm.inputs[0], "float32") or make.attr(norm, "stash_type") != 1:
        return None
    constants = []
    for tensor in norm.inputs[1:]:
        values = make.array(tensor)
        if values is None or not np.array_equal(values, values.astype(np.float16)):
            return None
        constants.append(make.constant(values.astype(np.float16), tensor.name))
    return make.node(norm.op, x, *constants, attrs=norm.attrs)
