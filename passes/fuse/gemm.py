"""Matrix products: scales and shifts along the columns fold into the constant factor, and x W + b becomes one Gemm.

    s[n] (alpha A B + beta C)[m, n] + t[n]  =  alpha A (B s) + (beta C s + t)          A [M, K], B [K, N]

A constant scales columns only where, aligned to the right, it varies along the last axis alone. BatchNormalization
normalises axis 1, which is the column of a product only at rank 2; with a Reshape between them nothing is matched, so
M = N cannot be mistaken for it. A scalar commutes with every movement of elements and with products, so the factor that
attention puts on its queries, split into heads, or on its scores, moves back into the weights. What is added to a
product without a bias becomes its C, another product too, which takes both biases. (W14, W15, W16, W29 of the usual
catalogues.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.graph import Array, Dim, Tensor
from optimizer.match import Match
from optimizer.ops import scalar
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, keeps_rank, narrow, per_channel, rank, wide
from passes.fuse.conv_affine import batch_norm

GEMM = ("float16", "float32", "float64")
HEADS = "Transpose(Reshape(Add(MatMul(x, w), b), s))"


def _columns(m: Match, make: Draft, w: Array, scale: Array, axis: int = 1) -> Tensor | None:
    """The constant factor with its columns (along `axis`) scaled by `scale` [N]."""
    factors = scale.reshape([-1 if i == axis else 1 for i in range(w.ndim)]).astype(wide(w).dtype)
    rounded = narrow(wide(w) * factors, w.dtype, axis)
    return None if rounded is None else make.constant(rounded, "weight")


def _gemm(m: Match, make: Draft, scale: Array | None, shift: Array | None) -> Tensor | None:
    """The matched Gemm `(x, w, b?)`, its columns scaled and shifted (None: by 1, by 0)."""
    gemm, b = m.node("Gemm"), m.get("b")
    bias = make.array(b)
    if not has_dtype(m["w"], *GEMM) or (b is not None and bias is None):
        return None
    w: Tensor | None = m["w"]
    if scale is not None:
        values = make.array(m["w"])
        axis = 0 if make.attr(gemm, "transB") else 1
        if values is None or (w := _columns(m, make, values, scale, axis)) is None:
            return None
    if bias is None and shift is None:
        return make.node("Gemm", m["x"], w, attrs=gemm.attrs)
    total = 0 if bias is None else wide(bias) * make.attr(gemm, "beta") * (1 if scale is None else scale)
    rounded = narrow(np.asarray(total + (0 if shift is None else shift)), np.dtype(m["w"].dtype))
    if rounded is None:
        return None
    return make.node("Gemm", m["x"], w, make.constant(rounded, "bias"), attrs={**gemm.attrs, "beta": 1.0})


def _constant(m: Match, make: Draft) -> Array | None:
    """The matched constant `c` per column of the matched Gemm or MatMul, or None."""
    values, shape = make.array(m["c"]), m["w"].shape
    if values is None or shape is None or len(shape) < 2:
        return None
    product = m.node("Gemm|MatMul")
    columns = shape[0] if product.op == "Gemm" and make.attr(product, "transB") else shape[-1]
    if product.op == "MatMul" and values.ndim > 1 and (rank(m["x"]) or 0) < 2:
        return None
    return per_channel(values, len(shape), len(shape) - 1, columns) if isinstance(columns, int) else None


@rule("Mul|Div(Gemm(x, w, b?), c)")
def gemm_mul(m: Match, make: Draft) -> Tensor | None:
    c = _constant(m, make)
    if c is None or (m.root.op == "Div" and not c.all()):
        return None
    return _gemm(m, make, c if m.root.op == "Mul" else 1 / c, None)


@rule("Add|Sub(Gemm(x, w, b?), c)")
def gemm_add(m: Match, make: Draft) -> Tensor | None:
    c = _constant(m, make)
    return None if c is None else _gemm(m, make, None, c if m.root.op == "Add" else -c)


@rule("BatchNormalization(Gemm(x, w, b?), gamma, beta, mean, var)")
def gemm_bn(m: Match, make: Draft) -> Tensor | None:
    affine = batch_norm(m, make)
    return None if affine is None else _gemm(m, make, *affine)


@rule("Mul|Div(MatMul(x, w), c)")
def matmul_mul(m: Match, make: Draft) -> Tensor | None:
    c, values = _constant(m, make), make.array(m["w"])
    if c is None or values is None or values.dtype.kind in "iu" or (m.root.op == "Div" and not c.all()):
        return None
    w = _columns(m, make, values, c if m.root.op == "Mul" else 1 / c, values.ndim - 1)
    return None if w is None else make.node("MatMul", m["x"], w)


@rule("Mul|Div(Add(MatMul(x, w), b), c)")
def matmul_add_mul(m: Match, make: Draft) -> Tensor | None:
    c, values, bias = _constant(m, make), make.array(m["w"]), make.array(m["b"])
    if c is None or values is None or bias is None or bias.ndim > 1 or values.dtype.kind in "iu":
        return None
    if bias.size not in (1, len(c)) or (m.root.op == "Div" and not c.all()):
        return None
    return _linear(m, make, values, bias, c if m.root.op == "Mul" else 1 / c)


def _scaled_heads(m: Match, make: Draft) -> Tensor | None:
    """The matched heads, moved as they were, of weights that hold the matched factor `c` too."""
    c, values, bias = scalar(make.graph, m["c"]), make.array(m["w"]), make.array(m["b"])
    if not c or values is None or bias is None or values.ndim < 2 or bias.ndim > 1 or values.dtype.kind in "iu":
        return None
    if not keeps_rank(m, m.root.outputs[0]):
        return None
    scale = np.full(values.shape[-1], c if m.root.op == "Mul" else 1 / c)
    linear = _linear(m, make, values, bias, scale)
    if linear is None:
        return None
    reshaped = make.node("Reshape", linear, m["s"], attrs=m.node("Reshape").attrs)
    return make.node("Transpose", reshaped, attrs=m.node("Transpose").attrs)


@rule(f"Mul|Div({HEADS}, c)")
def matmul_move_mul(m: Match, make: Draft) -> Tensor | None:
    return _scaled_heads(m, make)


@rule(f"Mul(MatMul({HEADS}, k), c)", f"Mul(MatMul(q, {HEADS}), c)")
def scores_move_mul(m: Match, make: Draft) -> Tensor | None:
    """A quotient stays, for runtimes know attention by it."""
    heads = _scaled_heads(m, make)
    if heads is None:
        return None
    return make.node("MatMul", *((heads, m["k"]) if "k" in m.tensors else (m["q"], heads)))


def _linear(m: Match, make: Draft, values: Array, bias: Array, scale: Array) -> Tensor | None:
    """x (W s) + b s."""
    w, b = _columns(m, make, values, scale, values.ndim - 1), narrow(wide(bias) * scale, bias.dtype)
    if w is None or b is None:
        return None
    return make.node("Add", make.node("MatMul", m["x"], w), make.constant(b, "bias"))


@rule("BatchNormalization(MatMul(x, w), gamma, beta, mean, var)")
def matmul_bn(m: Match, make: Draft) -> Tensor | None:
    affine, values = batch_norm(m, make), make.array(m["w"])
    if affine is None or values is None or values.ndim != 2 or rank(m["x"]) != 2:
        return None
    w, b = _columns(m, make, values, affine[0]), narrow(affine[1], values.dtype)
    if w is None or b is None:
        return None
    return make.node("Add", make.node("MatMul", m["x"], w), make.constant(b, "bias"))


@rule("Add(MatMul(x, w), b)")
def matmul_add(m: Match, make: Draft) -> Tensor | None:
    x, w, b = m["x"], m["w"], m["b"]
    if rank(x) != 2 or rank(w) != 2 or not has_dtype(x, *GEMM) or not _fits(b, [x.shape[0], w.shape[1]]):
        return None
    return make.node("Gemm", x, w, b)


@rule("Add(Gemm(x, w), b)")
def gemm_sum(m: Match, make: Draft) -> Tensor | None:
    gemm = m.node("Gemm")
    if not has_dtype(m["x"], *GEMM) or not _fits(m["b"], gemm.outputs[0].shape):
        return None
    return make.node("Gemm", m["x"], m["w"], m["b"], attrs={**gemm.attrs, "beta": 1.0})


@rule("Add(Gemm(x, w, b), Gemm(y, v, c))")
def gemm_gemm_sum(m: Match, make: Draft) -> Tensor | None:
    one, other = m.nodes[1:]
    shape = one.outputs[0].shape
    if shape is None or not isinstance(shape[1], int) or list(shape) != list(other.outputs[0].shape or ()):
        return None
    if not _fits(other.outputs[0], shape) or not has_dtype(m["w"], *GEMM):
        return None
    total = np.zeros(shape[1])
    for node in (one, other):
        bias = make.array(node.inputs[2])
        columns = None if bias is None else per_channel(bias, 2, 1, shape[1])
        if columns is None:
            return None
        total = total + make.attr(node, "beta") * columns
    rounded = narrow(total, np.dtype(m["w"].dtype))
    if rounded is None:
        return None
    inner = make.node("Gemm", *other.inputs[:2], make.constant(rounded, "bias"), attrs={**other.attrs, "beta": 1.0})
    return make.node("Gemm", *one.inputs[:2], inner, attrs={**one.attrs, "beta": 1.0})


def _fits(b: Tensor, product: Sequence[Dim] | None) -> bool:
    """True where the tensor broadcasts to the product of two matrices, for all values of the symbols."""
    if b.shape is None or product is None:
        return False
    dims = [1] * (2 - len(b.shape)) + list(b.shape)
    return len(dims) == 2 and all(d == 1 or (d is not None and d == p) for d, p in zip(dims, product, strict=True))
