"""The command line that builds the same engine on a machine that has NVIDIA's own tool: shown where no library is."""

from __future__ import annotations

import shlex
from pathlib import Path

from optimizer.engine import EngineOptions, Shape


def command(model: Path, options: EngineOptions) -> str:
    """One line for a shell: `tensorrt_rtx`, which builds for named GPUs, or `trtexec`, for the one that is present."""
    words = ["tensorrt_rtx" if options.gpus else "trtexec"]
    words += [f"--onnx={model}", f"--saveEngine={model.with_suffix('.engine')}", "--skipInference"]
    if options.gpus:
        words.append("--computeCapabilities=" + ",".join(gpu.removeprefix("sm_") for gpu in options.gpus))
    else:
        words.append("--stronglyTyped")  # needed by TensorRT 10, taken by 11, where it goes without saying
    for option, end in (("min", "least"), ("opt", "best"), ("max", "most")):
        sizes = [f"{name}:{_sizes(getattr(profile, end))}" for name, profile in options.profiles.items()]
        words += [f"--{option}Shapes={','.join(sizes)}"] if sizes else []
    if options.workspace is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace}B")
    if options.level is not None:
        words.append(f"--builderOptimizationLevel={options.level}")
    switches = {"--stripWeights": options.strip, "--refit": options.refit}
    switches["--versionCompatible"] = options.version_compatible
    words += [name for name, wanted in switches.items() if wanted]
    words += [f"--dynamicPlugins={path}" for path in options.plugins]
    return shlex.join(words)


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape))
