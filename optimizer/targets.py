"""What `--target` means: a backend, the passes that prepare the graph for it, and the candidates to choose from.

A candidate is a pipeline that ends the common one; every candidate is built, measured on the target and compared with
float, and the fastest that passes the gate is shipped. A target with one candidate has nothing to choose.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from optimizer import pipeline
from optimizer.errors import PipelineError, UserError

SIMPLIFY = "fixpoint(cleanup,fold,shapes,cse,fuse)"
RAISE = "opset{min=13},widen,cleanup"  # the first with scales per channel; int8 kernels give and take float32

# A LayerNormalization in one node (opset 17), Q/DQ in half precision (19), bfloat16 in convolutions (22).
OPSETS = {"fp32": 17, "fp16": 17, "bf16": 22}
QUANTIZED = 19
UNREAD = "keep=ConvTranspose,HardSwish,Mish,GlobalLpPool"  # which TensorRT refuses in bfloat16
ROUNDED = "widen{round=true}"  # every half as float32 that is rounded as the half would be
RESTS = ("fp16", "bf16", "fp32")
REST = RESTS[0]


REFUSED = {
    "ort-cuda-int8": "ONNX Runtime's CUDA provider has no kernels for int8 activations, which would run on the CPU; "
    "take ort-cuda-fp16, or trt-int8 for int8 on a GPU"
}


@dataclass(frozen=True)
class Cpu:
    """What placement of int8 must know of a processor. `int8_dot`: VNNI on x86, dot product on ARM."""

    arch: str
    int8_dot: bool


@dataclass(frozen=True)
class Target:
    """`prepare` runs for every candidate; `candidates` maps a scheme's name to the pipeline that ends it.

    `fallbacks` maps a candidate to the one it stands in for: it is built only where that one misses the gate. `rivals`
    are built only where variants are timed, to race, or where no other candidate is usable. `simulate` is the pipeline
    that makes a model runnable by the oracle, for a target that cannot run here. `rules`: what the shipped model is
    linted against, `precision` what its weighted operators are to run in. `summary`: one line for `optimize targets`.
    """

    name: str
    backend: str
    summary: str
    prepare: str = SIMPLIFY
    candidates: Mapping[str, str] = field(default_factory=lambda: {"float": ""})
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    rivals: Collection[str] = ()
    simulate: str = ""
    rules: str = ""
    precision: str = ""
    cpu: Cpu = Cpu("x86_64", True)

    @property
    def family(self) -> str:
        """The name without options."""
        return self.name.partition("{")[0]


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
        Target("openvino-fp32", "openvino", "OpenVINO on the CPU, float", cpu=cpu),
        Target(
            "openvino-int8",
            "openvino",
            "OpenVINO on the CPU, int8 where it is faster and as accurate",
            candidates={
                "float": "",
                "static": f"{RAISE},calibrate,quantize{{scheme=static}}",
                "inputs": f"{RAISE},calibrate{{of=all}},quantize{{scheme=openvino}}",
                "guarded": f"{RAISE},calibrate,quantize{{scheme=static floor=24}}",
                "careful": f"{RAISE},calibrate{{of=all}},quantize{{scheme=openvino limit=20}}",
            },
            fallbacks={"guarded": "static", "careful": "inputs"},
            cpu=cpu,
        ),
        Target("openvino-bf16", "openvino-bf16", "OpenVINO on the CPU, bfloat16 where the processor has it", cpu=cpu),
        Target(
            "ort-fp16",
            "onnx",
            "ONNX Runtime on a GPU: float16 inside where it is safe, not timed here",
            candidates={"float": "", "fp16": _half("fp16")},
            simulate=ROUNDED,
            cpu=cpu,
        ),
        _tensorrt("trt-fp32", "every layer in float32", {"fp32": f"dequantize,widen,{SIMPLIFY}"}, cpu),
        _tensorrt("trt-fp16", "float16 where it is safe, float32 elsewhere", {"fp16": _half("fp16")}, cpu),
        _tensorrt("trt-bf16", "bfloat16 where it is safe, float32 elsewhere", {"bf16": _half("bf16")}, cpu),
        _int8("fp16", cpu),
        Target(
            "ort-cuda-fp16",
            "cuda",
            "ONNX Runtime's CUDA kernels on an NVIDIA GPU, float16 where it is safe",
            candidates={"float": "", "fp16": _half("fp16")},
            precision="fp16",
            cpu=cpu,
        ),
        *_plugged("ort-tensorrt", "TensorRT inside ONNX Runtime", cpu),
        *_plugged("rtx", "TensorRT for RTX as a plugin of ONNX Runtime", cpu),
    )
    return {target.name: target for target in table}


def _plugged(backend: str, what: str, cpu: Cpu) -> tuple[Target, ...]:
    """TensorRT reached through ONNX Runtime: the models of trt-*, which the runtime compiles when it loads them."""
    half = _tensorrt("trt-fp16", "", {"fp16": _half("fp16")}, cpu)
    return (
        replace(half, name=f"{backend}-fp16", backend=backend, summary=f"{what}, float16 where it is safe"),
        replace(_int8("fp16", cpu), name=f"{backend}-int8", backend=backend, summary=f"{what}, int8 and float16"),
    )


def _half(to: str) -> str:
    widen = "widen," if to == "bf16" else ""
    return f"dequantize,opset{{min={OPSETS[to]}}},{widen}{SIMPLIFY},calibrate{{of=all}},{_cast(to)}"


def _cast(to: str) -> str:
    return f"cast{{to={to}{' ' + UNREAD if to == 'bf16' else ''}}}"


def _tensorrt(name: str, what: str, candidates: Mapping[str, str], cpu: Cpu) -> Target:
    summary = f"a TensorRT engine, {what}"
    return Target(
        name,
        "trt",
        summary,
        candidates={"float": "", **candidates},
        simulate=ROUNDED,
        rules="trt",
        precision=name.removeprefix("trt-"),
        cpu=cpu,
    )


def _int8(rest: str, cpu: Cpu) -> Target:
    """The target `trt-int8`, with `rest` for what is not int8."""
    opset = max(QUANTIZED, OPSETS[rest])
    raised = f"dequantize{{keep=symmetric}},opset{{min={opset}}},widen,{SIMPLIFY},calibrate{{of=all}}"
    remainder = "" if rest == "fp32" else f",{_cast(rest)}"
    plain = _tensorrt(
        "trt-int8",
        f"int8 where it keeps accuracy, {rest} elsewhere",
        {
            "int8": f"{raised},quantize{{scheme=tensorrt rest={rest} limit=25}}{remainder}",
            "careful": f"{raised},quantize{{scheme=tensorrt rest={rest} limit=35}}{remainder}",
            **({} if rest == "fp32" else {rest: _half(rest)}),
        },
        cpu,
    )
    return replace(
        plain,
        name="trt-int8" if rest == REST else f"trt-int8{{rest={rest}}}",
        fallbacks={"careful": "int8"},
        rivals=(rest,),
    )


def target(name: str) -> Target:
    """The target called `name`. Raises UserError with the nearest names."""
    known = targets()
    try:
        (spec,) = pipeline.parse(name)
    except (PipelineError, ValueError):
        spec = None
    if spec is not None and spec.name == "trt-int8" and set(spec.options) == {"rest"} and not spec.children:
        if spec.options["rest"] not in RESTS:
            raise UserError(f"target '{name}': rest is one of {', '.join(RESTS)}")
        return _int8(spec.options["rest"], this_cpu())
    if name in REFUSED:
        raise UserError(f"there is no target '{name}': {REFUSED[name]}")
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
