"""The user's own Python: `file.py:function`, for calibration data and for metrics."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from optimizer.errors import UserError


def is_function(spec: str) -> bool:
    """True for text of the form `file.py:function`."""
    return spec.rpartition(":")[0].endswith(".py")


def load_function(spec: str, what: str) -> Callable[..., Any]:
    """The function that `file.py:function` names; `what` says in errors which option it was given to.

    The file's own folder is importable while it is read. Raises UserError where the file does not exist, does not
    import, or has no such function.
    """
    file, _, name = spec.rpartition(":")
    if not is_function(spec) or not name:
        raise UserError(f"{what} '{spec}' is not of the form file.py:function")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{what}: there is no file '{file}'; the form is file.py:function")
    function = getattr(module := _import(path, what), name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(name, own, 3) or own[:5]
        hint = f"; did you mean {' or '.join(near)}?" if near else "; it defines no function"
        raise UserError(f"{what}: '{file}' has no function '{name}'{hint}")
    return function  # type: ignore[no-any-return]  # checked to be callable just above


def _import(path: Path, what: str) -> ModuleType:
    name = f"optimize_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{what}: '{path}' does not import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module
