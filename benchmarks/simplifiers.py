"""Simplifiers by name, each as a user would call it: reads a file, simplifies it, writes another.

    python -P benchmarks/simplifiers.py TOOL MODEL OUT

Prints one line of JSON: the seconds it took, imports aside, and the tool's version. Run as a script by the Python that
has the tool, so nothing of this project is imported but for the tool `ours`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

Simplifier = Callable[[str, str], None]


def ours() -> Simplifier:
    from optimizer.io import save
    from optimizer.plan import make_plan
    from optimizer.portable import portable
    from optimizer.targets import target

    make_plan(target("onnx"), None, None)  # imports the passes

    def run(source: str, out: str) -> None:
        save(portable(source), Path(out))

    return run


def onnxsim() -> Simplifier:
    import onnx
    import onnxsim

    def run(source: str, out: str) -> None:
        model, _ = onnxsim.simplify(onnx.load(source))
        onnx.save(model, out)

    return run


def onnxslim() -> Simplifier:
    import onnxslim

    def run(source: str, out: str) -> None:
        onnxslim.slim(source, out)

    return run


def onnxscript() -> Simplifier:
    import onnx
    from onnxscript import optimizer, rewriter

    def run(source: str, out: str) -> None:
        onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), out)

    return run


def onnxoptimizer() -> Simplifier:
    import onnx
    import onnxoptimizer

    def run(source: str, out: str) -> None:
        onnx.save(onnxoptimizer.optimize(onnx.load(source)), out)

    return run


PEERS: dict[str, Callable[[], Simplifier]] = {
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "onnxoptimizer": onnxoptimizer,
}
TOOLS = {"ours": ours, **PEERS}


def main() -> int:
    tool, source, out = sys.argv[1:]
    run = TOOLS[tool]()
    start = time.perf_counter()
    run(source, out)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "version": metadata.version("onnx-optimize" if tool == "ours" else tool)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
