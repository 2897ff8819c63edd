"""onnx-optimize: makes ONNX models fast on a named target, and proves that they are no worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.api import Result, optimize
    from optimizer.portable import simplify

__all__ = ["Result", "optimize", "simplify"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Loads the API on first use: importing the package costs nothing, so `optimize --help` is instant."""
    if name == "simplify":
        from optimizer import portable

        return portable.simplify
    if name in __all__:
        from optimizer import api

        return getattr(api, name)
    raise AttributeError(f"module 'optimizer' has no attribute '{name}'")
