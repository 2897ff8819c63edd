"""What a kernel has to do, how fast this machine can do it at best, and so what is left to win.

A kernel takes at least as long as its multiply-accumulates at the machine's best rate for their type, and as moving its
inputs, weights and outputs once through memory: the roofline (Williams, Waterman and Patterson, Roofline: An Insightful
Visual Performance Model, 2009). Both rates are measured here, on ONNX Runtime's own kernels: a large matrix product
and a Relu over more than the caches hold. A kernel whose data stays in the caches can beat the bound by memory.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.backend import Kernel
from optimizer.evaluate import session
from optimizer.machine import device, versions

SIDE = 1024  # of the matrices
STREAM = 1 << 26  # numbers, 256 MB
TRIES = 8
WIDTHS = {"float16": 2, "bfloat16": 2, "int64": 8, "uint64": 8, "double": 8, "int8": 1, "uint8": 1, "bool": 1}
CODES = ("int8", "uint8")

# Where each operator's weights stand among its inputs, for those whose work is counted.
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
PRODUCTS = {
    "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3, "Gemm": 1, "FusedGemm": 1, "QGemm": 3,
}  # fmt: skip
RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")


@dataclass(frozen=True)
class Peaks:
    """The best this machine does: multiply-accumulates a second by type, bytes a second through memory."""

    float32: float
    int8: float
    memory: float


def macs(kernel: Kernel) -> int | None:
    """Multiply-accumulates of one run, from the shapes that the runtime told; None for what is not counted."""
    shapes = [shape for _, shape in kernel.inputs]
    if not kernel.outputs or not shapes:
        return None
    out = math.prod(kernel.outputs[0][1])
    if (place := CONVOLUTIONS.get(kernel.op, -1)) >= 0 and len(shapes) > place:
        return out * math.prod(shapes[place][1:])
    if kernel.op == "ConvTranspose" and len(shapes) > 1:
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if kernel.op in PRODUCTS and len(shapes) > PRODUCTS[kernel.op]:
        a, b = shapes[0], shapes[PRODUCTS[kernel.op]]
        if "Gemm" in kernel.op:  # either side may be transposed: M K times K N, over M N, is K squared
            return out * math.isqrt(math.prod(a) * math.prod(b) // max(1, out))
        return out * (a[-1] if a else 1)
    if kernel.op in RECURRENT and len(shapes) > 2:
        return math.prod(shapes[0][:2]) * (math.prod(shapes[1]) + math.prod(shapes[2]))
    return None


def traffic(kernel: Kernel) -> int:
    """Bytes of inputs, weights and outputs, each once."""
    return sum(math.prod(shape) * WIDTHS.get(kind, 4) for kind, shape in [*kernel.inputs, *kernel.outputs])


def bound(kernel: Kernel, peaks: Peaks) -> float:
    """Seconds that the kernel takes at least."""
    codes = any(kind in CODES for kind, _ in kernel.inputs)
    rate = peaks.int8 if codes or kernel.op.startswith("DynamicQuantize") else peaks.float32
    return max((macs(kernel) or 0) / rate, traffic(kernel) / peaks.memory)


def by_operator(kernels: Sequence[Kernel], peaks: Peaks | None = None) -> list[dict[str, Any]]:
    """Kernels summed up by operator, what takes most time first (JSON). `bound_ms` where shapes are told."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.op, []).append(kernel)
    whole = sum(kernel.seconds for kernel in kernels) or 1.0
    rows = [{"op": op, "count": len(own), **_sums(own, whole, peaks)} for op, own in groups.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def by_node(kernels: Sequence[Kernel], peaks: Peaks | None = None) -> list[dict[str, Any]]:
    """Each kernel by itself, the slowest first (JSON)."""
    whole = sum(kernel.seconds for kernel in kernels) or 1.0
    rows = [{"node": kernel.name, "op": kernel.op, **_sums([kernel], whole, peaks)} for kernel in kernels]
    return sorted(rows, key=lambda row: -row["ms"])


def _sums(kernels: Sequence[Kernel], whole: float, peaks: Peaks | None) -> dict[str, Any]:
    seconds = sum(kernel.seconds for kernel in kernels)
    told = bool(kernels[0].outputs)
    found: dict[str, Any] = {
        "ms": float(f"{seconds * 1000:.4g}"),
        "share": round(seconds / whole, 4),
        "macs": sum(macs(kernel) or 0 for kernel in kernels) if told else None,
        "bytes": sum(map(traffic, kernels)) if told else None,
    }
    if peaks is not None:
        found["bound_ms"] = float(f"{sum(bound(k, peaks) for k in kernels) * 1000:.4g}") if told else None
    return found


# ---------------------------------------------------------------------- the machine's best


def peaks(threads: int, folder: Path | None, tell: Callable[[str, int, int], None]) -> Peaks:
    """Measured once for a processor, a number of threads and a version of the runtime; kept in `folder`."""
    facts = device()
    key = [facts["cpu"], facts["arch"], threads or facts["cores"], versions().get("onnxruntime"), SIDE, STREAM]
    file = None if folder is None else folder / "peaks.json"
    kept = _read(file)
    text = json.dumps(key)
    if text not in kept:
        tell("measuring the machine", 0, 3)
        found = Peaks(_products(threads, False), _products(threads, True), _stream(threads))
        kept[text] = asdict(found)
        _write(file, kept)
    return Peaks(**kept[text])


def _products(threads: int, codes: bool) -> float:
    """Multiply-accumulates a second of one large product, in float32 or of u8 by s8."""
    dtype = np.int8 if codes else np.float32
    weights = numpy_helper.from_array(np.ones((SIDE, SIDE), dtype), "w")
    kinds = (TensorProto.UINT8, TensorProto.INT32) if codes else (TensorProto.FLOAT, TensorProto.FLOAT)
    node = helper.make_node("MatMulInteger" if codes else "MatMul", ["x", "w"], ["y"])
    feed = np.ones((SIDE, SIDE), np.uint8 if codes else np.float32)
    return SIDE**3 / _best(node, kinds, [weights], feed, threads)


def _stream(threads: int) -> float:
    """Bytes a second of reading a large array and writing another."""
    node = helper.make_node("Relu", ["x"], ["y"])
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT)
    return 2 * 4 * STREAM / _best(node, kinds, [], np.ones(STREAM, np.float32), threads)


def _best(
    node: onnx.NodeProto, kinds: tuple[int, int], weights: Sequence[onnx.TensorProto], feed: Any, threads: int
) -> float:
    """The least seconds of several runs, outputs bound once so that no memory is taken meanwhile."""
    import onnxruntime as ort

    shapes = [list(feed.shape), list(feed.shape)]
    infos = [
        helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in zip("xy", kinds, shapes, strict=True)
    ]
    graph = helper.make_graph([node], "best", infos[:1], infos[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ready = session(model.SerializeToString(), threads=threads, optimized=True)
    binding = ready.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(feed))
    made = np.zeros(feed.shape, helper.tensor_dtype_to_np_dtype(kinds[1]))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(made))
    taken = []
    for _ in range(TRIES):
        start = time.perf_counter()
        ready.run_with_iobinding(binding)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _read(file: Path | None) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(file.read_text()) if file is not None else {}
        return {key: value for key, value in found.items() if set(value) == {"float32", "int8", "memory"}}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path | None, kept: dict[str, dict[str, float]]) -> None:
    """In one step; where the folder cannot be written the next run measures again, that is all."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".new-", delete=False) as made:
            json.dump(kept, made, indent=1)
        os.replace(made.name, file)
    except OSError:
        return
