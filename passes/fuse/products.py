"""Matrix products with constants, in a row or added, are one product.

    (x V + c) W + b  =  x (V W) + (c W + b)        V [k, m], W [m, n]        x V + x W  =  x (V + W)

V W has k n numbers, each read once and multiplied once per row of x: the first line is taken only where V and W have
no fewer together (LoRA's factors, say, stay two). It is computed in float64 and rounded once; integers would wrap
around. Of an infinite x the first line may make inf - inf, which is NaN, where the product makes inf: so the rules wait
for fast-math. (W17 of the usual catalogues.)
"""

from __future__ import annotations

import numpy as np

from optimizer.graph import Array, Node, Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, narrow, per_channel

FLOATS = ("float16", "float32", "float64")
Affine = tuple[Array, Array]  # [k, n] and, per column, [n] or [1]


@rule("MatMul(MatMul(x, v), w)", "MatMul(Add(MatMul(x, v), c), w)", fast_math=True)
def matmul_matmul(m: Match, make: Draft) -> Tensor | None:
    if not _pays(m, m.nodes[-1], m.root):
        return None
    first, second = _affine(make, m.nodes[-1]), _affine(make, m.root)
    if first is None or second is None:
        return None
    if m.get("c") is None:
        w = narrow(first[0] @ second[0], np.dtype(m["w"].dtype), axis=1)
        return None if w is None else make.node("MatMul", m["x"], make.constant(w, "weight"))
    c = make.array(m["c"])
    if c is None or c.ndim > 1 or c.size not in (1, first[0].shape[1]):
        return None
    arrays = _composed(m, (first[0], c.astype(np.float64).reshape(-1)), second)
    if arrays is None:
        return None
    return make.node(
        "Add", make.node("MatMul", m["x"], make.constant(arrays[0], "weight")), make.constant(arrays[1], "bias")
    )


@rule("Gemm(Gemm|MatMul(x, v, c?), w, b?)", "MatMul(Gemm(x, v, c?), w)", fast_math=True)
def gemm_gemm(m: Match, make: Draft) -> Tensor | None:
    second, first = m.nodes
    if make.attr(second, "transA") or not _pays(m, first, second):
        return None
    inner, outer = _affine(make, first), _affine(make, second)
    if inner is None or outer is None or (arrays := _composed(m, inner, outer)) is None:
        return None
    biased = m.get("b") is not None or m.get("c") is not None
    bias = make.constant(arrays[1], "bias") if biased else None
    attrs = {"transA": 1} if make.attr(first, "transA") else {}
    return make.node("Gemm", m["x"], make.constant(arrays[0], "weight"), bias, attrs=attrs)


@rule("Add(MatMul(x, v), MatMul(x, w))", fast_math=True)
def matmul_sum(m: Match, make: Draft) -> Tensor | None:
    v, w = make.array(m["v"]), make.array(m["w"])
    if v is None or w is None or v.shape != w.shape or not has_dtype(m["w"], *FLOATS):
        return None
    total = narrow(v.astype(np.float64) + w, w.dtype)
    return None if total is None else make.node("MatMul", m["x"], make.constant(total, "weight"))


def _pays(m: Match, first: Node, second: Node) -> bool:
    """True where the product of the factors, of known sizes, has no more numbers than they do."""
    shapes = [node.inputs[1].shape for node in (first, second)]
    if any(s is None or len(s) != 2 or not all(isinstance(d, int) for d in s) for s in shapes):
        return False
    (k, mid), (rows, n) = (
        s[::-1] if node.attrs.get("transB") else s for s, node in zip(shapes, (first, second), strict=True)
    )
    return has_dtype(m["w"], *FLOATS) and bool(k * n <= k * mid + rows * n)


def _affine(make: Draft, node: Node) -> Affine | None:
    """The map of the rows of a MatMul or Gemm, in float64; None where it is not constant."""
    w = make.array(node.inputs[1])
    if w is None:
        return None
    w = w.astype(np.float64)
    if node.op == "MatMul":
        return w, np.zeros(1)
    w = make.attr(node, "alpha") * (w.T if make.attr(node, "transB") else w)
    if len(node.inputs) < 3:
        return w, np.zeros(1)
    bias = make.array(node.inputs[2])
    b = None if bias is None else per_channel(bias, 2, 1, w.shape[1])
    return None if b is None else (w, make.attr(node, "beta") * b)


def _composed(m: Match, first: Affine, second: Affine) -> Affine | None:
    """The second map after the first, rounded to the dtype of the weights."""
    (v, c), (w, b) = first, second
    dtype = np.dtype(m["w"].dtype)
    product, bias = narrow(v @ w, dtype, axis=1), narrow(np.broadcast_to(c, v.shape[1]) @ w + b, dtype)
    return None if product is None or bias is None else (product, bias)
