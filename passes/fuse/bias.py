"""A bias of zeros is left out: y + 0 = y (but for -0 + 0 = 0, which no reader of a sum tells apart from rounding).

(W20 of the usual catalogues.) The bias of Gemm is optional from operator set 11 on.
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule


@rule("Conv|ConvTranspose|Gemm(x, w, b)", "QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)")
def zero_bias(m: Match, make: Draft) -> Tensor | None:
    bias = make.array(m["b"])
    if bias is None or bias.any() or (m.root.op == "Gemm" and make.graph.opset < 11):
        return None
    return make.node(m.root.op, *m.root.inputs[:-1], attrs=m.root.attrs)
