"""The machine that was measured: what of it decides speed, as far as the system tells."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from optimizer.machine import device

# Instructions that kernels for neural networks are written for, as Linux calls them.
FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
CPUINFO, GOVERNOR = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
ASKED = "name,driver_version,memory.total"


def machine() -> dict[str, Any]:
    """Processor with flags, cores, memory, and GPUs with their driver."""
    import psutil

    found = _flags()
    return {
        **device(),
        "flags": [flag for flag in FLAGS if flag in found],
        "virtual": "hypervisor" in found,
        "memory_bytes": psutil.virtual_memory().total,
        "governor": _text(GOVERNOR).strip() or None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": _gpus(),
    }


def _flags() -> set[str]:
    lines = [line for line in _text(CPUINFO).splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _gpus() -> list[dict[str, str]]:
    """As nvidia-smi lists them; none where it is not there or has nothing to say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, f"--query-gpu={ASKED}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(("name", "driver", "memory"), row, strict=False)) for row in rows]
