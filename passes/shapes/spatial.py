"""Dims of convolutions, pooling, resizing and recurrences over symbolic sizes.

A convolution over a symbolic height gives the same expression for every branch of the same geometry, and for stride 1
with matching pads the height itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optimizer.graph import Node
from optimizer.ops import attribute
from passes.shapes.algebra import divide, number, opaque
from passes.shapes.facts import Dims, Facts


def _window(node: Node, facts: Facts) -> Dims | None:
    """Conv and pooling: (n + pads - dilation (k - 1) - 1) / stride + 1 per spatial axis, rounded down."""
    dims = facts.dims(node.inputs[0])
    get: Callable[[str], Any] = lambda name: attribute(facts.graph, node, name)  # noqa: E731
    weights = facts.dims(node.inputs[1]) if node.op == "Conv" else None
    kernel = get("kernel_shape") or ([d.value for d in weights[2:]] if weights else None)
    if dims is None or not kernel or None in kernel or get("ceil_mode") or get("auto_pad") not in (None, "NOTSET"):
        return None
    if len(dims) != len(kernel) + 2:
        return None
    n = len(kernel)
    strides, dilations, pads = get("strides") or [1] * n, get("dilations") or [1] * n, get("pads") or [0] * 2 * n
    channels = dims[1] if node.op != "Conv" else weights[0] if weights else None
    out: Dims = [dims[0], channels]
    for i, dim in enumerate(dims[2:]):
        reach = dim + number(pads[i] + pads[n + i] - dilations[i] * (kernel[i] - 1) - 1)
        size = divide(reach, number(strides[i])) + number(1)
        out.append(size if size.natural else opaque("dim", size, natural=True))
    return out


def _global(node: Node, facts: Facts) -> Dims | None:
    dims = facts.dims(node.inputs[0])
    return None if dims is None else [*dims[:2], *[number(1)] * (len(dims) - 2)]


def _resize(node: Node, facts: Facts) -> Dims | None:
    """By whole-numbered scales, or to sizes that are known as expressions."""
    dims, sizes = facts.dims(node.inputs[0]), facts.vector(node, 3)
    if dims is None or "axes" in node.attrs:
        return None
    if sizes is not None and attribute(facts.graph, node, "keep_aspect_ratio_policy") in (None, "stretch"):
        return list(sizes) if len(sizes) == len(dims) else None
    place = 2 if node.op == "Resize" and facts.graph.opset > 10 else 1
    scales = facts.graph.array(node.inputs[place]) if len(node.inputs) > place and node.inputs[place].name else None
    if scales is None or len(scales) != len(dims) or attribute(facts.graph, node, CROP_MODE) == "tf_crop_and_resize":
        return None
    return [d * number(int(s)) if s == int(s) else None for d, s in zip(dims, scales.tolist(), strict=True)]


CROP_MODE = "coordinate_transformation_mode"


def _recurrent(node: Node, facts: Facts) -> Dims | None:
    """Y is [steps, directions, batch, hidden]; only the usual layout."""
    x, r = facts.dims(node.inputs[0]), facts.dims(node.inputs[2])
    if x is None or r is None or attribute(facts.graph, node, "layout"):
        return None
    return [x[0], r[0], x[1], r[2]]


SPATIAL: dict[str, Callable[[Node, Facts], Dims | None]] = {
    **dict.fromkeys(["Conv", "MaxPool", "AveragePool"], _window),
    **dict.fromkeys(["GlobalAveragePool", "GlobalMaxPool"], _global),
    **dict.fromkeys(["Resize", "Upsample"], _resize),
    **dict.fromkeys(["LSTM", "GRU", "RNN"], _recurrent),
}
