"""A depthwise convolution by one element per channel is a product: Conv(x, w) = x w for w [C, 1, 1, ...] and C groups.

With stride 1 every element is multiplied at its own place, and nothing is padded. ONNX Runtime's Mul takes 0.4 to 0.8
of the time of such a Conv. One that a normalisation or a sum follows stays: they fold into it. (W25 of the usual
catalogues.)
"""

from __future__ import annotations

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule

FOLDS = frozenset(["Add", "BatchNormalization", "Sub"])


@rule("Conv(x, w)")
def depthwise_mul(m: Match, make: Draft) -> Tensor | None:
    w, conv = make.array(m["w"]), m.root
    if w is None or w.ndim < 3 or w.shape[0] != make.attr(conv, "group") or any(d != 1 for d in w.shape[1:]):
        return None
    if any(stride != 1 for stride in conv.attrs.get("strides", ())) or any(conv.attrs.get("pads", ())):
        return None
    if any(reader.op in FOLDS for reader in conv.outputs[0].outputs):
        return None
    return make.node("Mul", m["x"], make.constant(w.reshape(w.shape[:1] + w.shape[2:]), "scale"))
