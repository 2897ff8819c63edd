"""Runs a simplifier in a process of its own and says what that cost.

A small process stands between: a child's peak memory starts at that of the process which forked it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("simplifiers.py")
BETWEEN = """
import json, resource, subprocess, sys, time
start, failed, said = time.perf_counter(), "", "{}"
try:
    done = subprocess.run(sys.argv[2:], capture_output=True, text=True, timeout=float(sys.argv[1]))
    said = (done.stdout.splitlines() or ["{}"])[-1]
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        failed = lines[-1] if done.returncode > 0 else f"killed by signal {-done.returncode}"
except subprocess.TimeoutExpired:
    failed = f"over {float(sys.argv[1]):.0f} s"
wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
told = {} if failed else json.loads(said)
cost = dict(wall=wall, cpu=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1024, failed=failed)
print(json.dumps({**cost, **told}))
"""


@dataclass(frozen=True)
class Launched:
    """`seconds`: what the tool took, imports aside; `wall` and `cpu` are the whole process's. `failed`: why, or ''."""

    wall: float
    cpu: float
    peak_mb: float
    failed: str
    seconds: float = 0.0
    version: str = ""


def launch(tool: str, source: Path, out: Path, python: str, limit: float) -> Launched:
    """Simplifies `source` into `out` with the tool that `python` has; it is killed after `limit` seconds."""
    command = [python, "-P", str(SCRIPT), tool, str(source), str(out)]
    between = [sys.executable, "-c", BETWEEN, str(limit), *command]
    done = subprocess.run(between, check=True, stdout=subprocess.PIPE, text=True)
    return Launched(**json.loads(done.stdout))
