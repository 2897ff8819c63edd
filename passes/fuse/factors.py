"""Operators around a matrix product that only arrange its factors.

    reshape(reshape(x, [.., K]) W) = x W               where the result has x's dims but the last     W [K, N]
    reshape(reshape(a, [P, M, K]) reshape(b, [P, K, N])) = a b       a [.., M, K], b [.., K, N] with equal first dims
    gemm(transpose(a), b) = gemm(a, b) with transA turned round, and so for b

MatMul treats all but the last two dims as a list of matrices in row-major order, which is the order that Reshape keeps.
(S14, S16 of the usual catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import rank
from passes.fuse.reshape import reshapes_to


@rule("Reshape(MatMul(Reshape(x, s), w), t)")
def matmul_rows(m: Match, make: Draft) -> Tensor | None:
    x, w, flat = m["x"], m["w"], m.node("MatMul").inputs[0]
    if rank(w) != 2 or (rank(x) or 0) < 2 or (rank(flat) or 0) < 2:
        return None
    depth = x.shape[-1]
    if not depth or flat.shape[-1] != depth or not reshapes_to(make, m.root.outputs[0], [*x.shape[:-1], w.shape[1]]):
        return None
    return make.node("MatMul", x, w)


@rule("Reshape(MatMul(Reshape(a, s), Reshape(b, u)), t)")
def matmul_batch(m: Match, make: Draft) -> Tensor | None:
    a, b, result = m["a"], m["b"], m.root.outputs[0]
    pairs = list(zip((a, b), m.node("MatMul").inputs, strict=True))
    if any((rank(x) or 0) < 2 or rank(flat) != 3 for x, flat in pairs):
        return None
    if any(None in (*x.shape, *flat.shape[1:]) or x.shape[-2:] != flat.shape[1:] for x, flat in pairs):
        return None
    if a.shape[:-2] != b.shape[:-2] or not reshapes_to(make, result, [*a.shape[:-1], b.shape[-1]]):
        return None
    return make.node("MatMul", a, b)


@rule("Gemm(Transpose(x), w, c?)", "Gemm(x, Transpose(w), c?)")
def gemm_transpose(m: Match, make: Draft) -> Tensor | None:
    gemm, transpose = m.nodes
    if list(transpose.attrs.get("perm", [1, 0])) != [1, 0]:
        return None
    turned = "transA" if gemm.inputs[0] is transpose.outputs[0] else "transB"
    attrs = {**gemm.attrs, turned: 1 - make.attr(gemm, turned)}
    return make.node("Gemm", m["x"], m["w"], m.get("c"), attrs=attrs)
