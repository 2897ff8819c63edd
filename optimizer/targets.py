"""What `--target` means: a backend, the passes that prepare the graph for it, and the candidates to choose from.

A candidate is a pipeline that ends the common one; every candidate is built, measured on the target and compared with
float, and the fastest that passes the gate is shipped. A target with one candidate has nothing to choose.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from optimizer.errors import UserError

SIMPLIFY = "fixpoint(cleanup,fold,shapes,cse,fuse)"
RAISE = "opset{min=13},widen,cleanup"  # the first with scales per channel; int8 kernels give and take float32


@dataclass(frozen=True)
class Cpu:
    """What placement of int8 must know of a processor. `int8_dot`: VNNI on x86, dot product on ARM."""

    arch: str
    int8_dot: bool


@dataclass(frozen=True)
class Target:
    """`prepare` runs for every candidate; `candidates` maps a scheme's name to the pipeline that ends it.

    `fallbacks` maps a candidate to the one it stands in for: it is built only where that one misses the gate.
    `summary`: one line for `optimize targets`.
    """

    name: str
    backend: str
    summary: str
    prepare: str = SIMPLIFY
    candidates: Mapping[str, str] = field(default_factory=lambda: {"float": ""})
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    cpu: Cpu = Cpu("x86_64", True)


def targets() -> dict[str, Target]:
    """Every target by name, for this machine."""
    cpu = this_cpu()
    table = (
        Target("onnx", "onnx", "a portable, simplified ONNX file: standard operators only", cpu=cpu),
        Target("ort-fp32", "ort", "ONNX Runtime on the CPU, float", cpu=cpu),
        Target(
            "ort-int8",
            "ort",
            "ONNX Runtime on the CPU, int8 where it is faster and as accurate",
            prepare=SIMPLIFY.replace("fuse", "fuse{gemm=false}"),  # a Gemm has no fast int8 kernel, a MatMul has
            candidates={
                "float": "",
                "hybrid": f"{RAISE},calibrate,quantize{{scheme=hybrid}}",
                "static": f"{RAISE},calibrate,quantize{{scheme=static}}",
                "dynamic": f"{RAISE},quantize{{scheme=dynamic}}",
                "guarded": f"{RAISE},calibrate,quantize{{scheme=hybrid floor=24}}",
                "careful": f"{RAISE},calibrate,quantize{{scheme=hybrid limit=20}}",
            },
            fallbacks={"guarded": "hybrid", "careful": "guarded"},
            cpu=cpu,
        ),
    )
    return {target.name: target for target in table}


def target(name: str) -> Target:
    """The target called `name`. Raises UserError with the nearest names."""
    known = targets()
    if name not in known:
        near = get_close_matches(name, known, 3) or sorted(known)
        raise UserError(
            f"no target is called '{name}'; did you mean {' or '.join(near)}? 'optimize targets' lists them"
        )
    return known[name]


@cache
def this_cpu() -> Cpu:
    """This machine's processor. Where /proc/cpuinfo is missing, an int8 dot product is not assumed."""
    arch = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    if arch == "aarch64":
        return Cpu(arch, "asimddp" in flags or platform.system() == "Darwin")
    return Cpu(arch, "avx512_vnni" in flags or "avx_vnni" in flags)
