"""Padding by nothing, resampling by 1, windows of one element: each rule returns its input in place of the result.

IDs are those of the rewrite catalogue (N8, N14, N15).
"""

from __future__ import annotations

import numpy as np

from optimizer import shapes
from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.cleanup.movement import ints


@rule("Pad(x, *rest)", shape_safe=True)
def pad_nothing(m: Match, make: Draft) -> Tensor | None:
    """N8. All pads are zero; the mode and the value do not matter then."""
    pads = ints(make, m.root, 1, "paddings" if m.graph.opset < 2 else "pads")
    return m["x"] if pads is not None and not any(pads) else None


@rule("Resize|Upsample(x, *rest)", shape_safe=True)
def resize_nothing(m: Match, make: Draft) -> Tensor | None:
    """N14. Scale 1 samples every element at its own place; not so for cropping and for tf_half_pixel_for_nn."""
    node = m.root
    if make.attr(node, "coordinate_transformation_mode") in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return None
    if len(node.inputs) > 3 and node.inputs[3].name:  # sizes
        return m["x"] if shapes.same_shape(m["x"], node.outputs[0]) else None
    place = 2 if node.op == "Resize" and m.graph.opset > 10 else 1
    scales = make.attr(node, "scales") if place == 1 else None
    if scales is None and len(node.inputs) > place and node.inputs[place].name:
        scales = make.array(node.inputs[place])
    return m["x"] if scales is not None and len(scales) and np.all(np.asarray(scales) == 1) else None


@rule("AveragePool(x)", shape_safe=True)
def pool_one(m: Match, make: Draft) -> Tensor | None:
    """N15. Windows of one element at every place. (MaxPool is left alone: ONNX Runtime's drops NaN.)"""
    lists = [make.attr(m.root, name) or [] for name in ("kernel_shape", "strides", "dilations")]
    pads = make.attr(m.root, "pads") or []
    return m["x"] if all(v == 1 for each in lists for v in each) and not any(pads) else None


@rule("GlobalAveragePool(x)", shape_safe=True)
def global_pool_one(m: Match, make: Draft) -> Tensor | None:
    """N15. One element per channel already."""
    x = m["x"]
    return x if x.shape is not None and all(d == 1 for d in x.shape[2:]) else None


RULES = (pad_nothing, resize_nothing, pool_one, global_pool_one)
