"""Execution providers that come as packages of their own and plug into onnxruntime (1.23 and newer).

Each such package has a module with `get_library_path` and `get_ep_name`; the library is registered once in a process,
after which onnxruntime lists the devices that the provider can use.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@cache
def devices(module: str, package: str) -> tuple[Any, ...]:
    """The devices that a provider offers here; none where it is not installed or cannot be used."""
    try:
        import onnxruntime as ort

        plugin = import_module(module)
        version(package)
    except (ImportError, PackageNotFoundError, OSError):
        return ()
    if not hasattr(ort, "register_execution_provider_library"):
        return ()
    ort.set_default_logger_severity(4)
    try:
        ort.register_execution_provider_library(package, plugin.get_library_path())
    except Exception:  # made for another onnxruntime, or a library of the system is missing: as if it were not here
        return ()
    return tuple(device for device in ort.get_ep_devices() if device.ep_name == plugin.get_ep_name())
