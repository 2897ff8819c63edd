"""The only place where names meet code: "module:Class" strings, looked up when asked for, and entry points.

Other packages add passes and backends through the entry point groups `onnx_optimize.passes` and
`onnx_optimize.backends`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from optimizer.backend import Backend
    from optimizer.graph import Graph
    from optimizer.lint import Rule
    from optimizer.pipeline import Pass
    from optimizer.targets import Cpu

PASSES = {
    "calibrate": "passes.calibrate:Calibrate",
    "cast": "passes.cast:Cast",
    "cleanup": "passes.cleanup:Cleanup",
    "cse": "passes.cse:Cse",
    "dequantize": "passes.dequantize:Dequantize",
    "fix": "passes.fix:Fix",
    "fixpoint": "passes.fixpoint:Fixpoint",
    "fold": "passes.fold:Fold",
    "fuse": "passes.fuse:Fuse",
    "opset": "passes.opset:Opset",
    "prune": "passes.prune:Prune",
    "quantize": "passes.quantize:Quantize",
    "shapes": "passes.shapes:Shapes",
    "sparsify": "passes.sparsify:Sparsify",
    "widen": "passes.widen:Widen",
}
BACKENDS = {
    "cuda": "backends.gpu:GpuBackend",
    "onnx": "backends.onnx:OnnxBackend",
    "openvino": "backends.openvino:OpenvinoBackend",
    "openvino-bf16": "backends.openvino:bf16",
    "ort": "backends.ort:OrtBackend",
    "ort-tensorrt": "backends.gpu:tensorrt",
    "rtx": "backends.gpu:RtxBackend",
    "trt": "backends.trt.backend:TrtBackend",
}

LINTS = {"trt": "backends.trt.legal:rules", "ort-cpu": "backends.ort_legal:rules"}
EXPLAINS = {"pruning": "passes.prune.explain:explain"}


@cache
def _table(kind: str) -> dict[str, str]:
    own = PASSES if kind == "passes" else BACKENDS
    return own | {entry.name: entry.value for entry in entry_points(group=f"onnx_optimize.{kind}")}


def pass_names() -> list[str]:
    return sorted(_table("passes"))


def load_pass(name: str) -> type[Pass]:
    return _load(_table("passes")[name])  # type: ignore[no-any-return]


def load_backend(name: str) -> Backend:
    """The backend of that name; one that is not in the table may be named as "module:Class"."""
    if ":" in name:
        return _load(name)()  # type: ignore[no-any-return]
    return _load(_table("backends")[name])()  # type: ignore[no-any-return]


def backend_names() -> list[str]:
    return sorted(_table("backends"))


def has_backend(name: str) -> bool:
    return ":" in name or name in _table("backends")


def load_lint(name: str) -> Callable[[Cpu], tuple[Rule, ...]]:
    """What gives a runtime's rules for a processor."""
    return _load(LINTS[name])  # type: ignore[no-any-return]


def load_explain(name: str) -> Callable[[Graph], dict[str, Any]]:
    """What says which parts of a prepared graph a pass could change, and what keeps it from the rest."""
    return _load(EXPLAINS[name])  # type: ignore[no-any-return]


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
