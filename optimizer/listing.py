"""What `optimize passes` lists: every registered pass, its options with their defaults, its first line of help."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from optimizer import registry
from optimizer.pipeline import Pass


def describe_passes() -> list[dict[str, Any]]:
    """One row per pass, by name."""
    return [_row(name, registry.load_pass(name)) for name in registry.pass_names()]


def _row(name: str, kind: type[Pass]) -> dict[str, Any]:
    module = inspect.getmodule(kind)
    about = (module.__doc__ if module is not None and module.__doc__ else kind.__doc__ or "").strip().splitlines()
    fields = [f for f in dataclasses.fields(kind) if f.name != "children"]
    return {
        "pass": name,
        "what": about[0] if about else "",
        "lossy": kind.lossy,
        "options": [f"{f.name}={_text(f.default)}" for f in fields],
        "takes_passes": len(fields) != len(dataclasses.fields(kind)),
    }


def _text(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "..."
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
