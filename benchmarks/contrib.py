"""What larger operators would add to a portable model on ONNX Runtime's CPU: its own, and the standard Attention.

    python -m benchmarks.contrib [--only NAME,NAME] [--seconds S] [--json FILE]

The runtime's offline optimizer (onnxruntime.transformers, which needs `pip install sympy`) is given the original model
once for Attention and once for MultiHeadAttention, both with SkipLayerNormalization and BiasGelu. `standard` is our
portable model in operator set 23 with the fuse rules for Attention named. Each file is timed in turn with the original,
on two threads, the runtime's own optimizations on. The answer decides whether `backends/ort.py` lowers to the
runtime's operators and whether those rules are on. A script, not a test.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from benchmarks import exports, table
from benchmarks.peers import quiet
from benchmarks.zoo import Timed, opened
from optimizer.backend import measure, ratio
from optimizer.context import Context
from optimizer.evaluate import Feeds
from optimizer.io import save
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.portable import portable
from optimizer.targets import target

ORIGINAL, OURS, STANDARD = "original", "ours", "standard"
FUSIONS = {"attention": False, "multi-head": True}  # by whether the optimizer may use MultiHeadAttention
VARIANTS = (OURS, STANDARD, *FUSIONS)


@dataclass(frozen=True)
class Transformer:
    """`kind` is the optimizer's name for the architecture; `lengths` of the sequences, none where they are fixed."""

    kind: str
    heads: int
    width: int
    lengths: tuple[int, ...] = ()


MODELS = {
    "bert-base": Transformer("bert", 12, 768, (32, 128, 384, 512)),
    "minilm-l3": Transformer("bert", 12, 384, (32, 128, 384)),
    "vit-s": Transformer("vit", 6, 384),
    "swin-t": Transformer("swin", 3, 96),
}


@dataclass
class Row:
    """`speed` by variant: the original's time over the variant's, the median over the rounds; `fused` nodes by kind."""

    part: ClassVar[str] = "contrib"
    model: str
    length: int = 0
    milliseconds: float = 0.0
    speed: dict[str, float] = field(default_factory=dict)
    fused: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        return self.model, self.length


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MODELS), help="models, separated by commas")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each row")
    parser.add_argument("--json", type=Path, help="where to merge the rows into")
    options = parser.parse_args(argv)
    kinds = {Row.part: Row}
    rows = table.read([options.json] * bool(options.json and options.json.exists()), kinds)
    for name in options.only.split(","):
        table.keep(measured(name, options.seconds), rows, options.json, kinds)
    cells = [
        [row.model, str(row.length or "-"), f"{row.milliseconds:.2f}", *(f"{row.speed[v]:.2f}x" for v in VARIANTS)]
        for row in rows.values()
    ]
    print(table.markdown(["model", "length", "original, ms", *VARIANTS], cells))
    return 0


def measured(name: str, seconds: float) -> Iterator[Row]:
    source = exports.any_path(name)
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        files = {ORIGINAL: source} | {variant: Path(work) / f"{variant}.onnx" for variant in VARIANTS}
        save(portable(source), files[OURS])
        fused = {STANDARD: standard(source, files[STANDARD])}
        for variant, multi_head in FUSIONS.items():
            fused[variant] = fuse(source, files[variant], MODELS[name], multi_head)
        sessions = {variant: Timed(stack.enter_context(opened(file))) for variant, file in files.items()}
        model = onnx.load(source, load_external_data=False)
        for length in MODELS[name].lengths or (0,):
            feed = exports.typical(name, model)
            timings = measure(sessions, [stretched(feed, length)], seconds=seconds, rounds=400)
            before = timings[ORIGINAL]
            speed = {variant: ratio(before, timings[variant]) for variant in VARIANTS}
            yield Row(name, length, before.median * 1e3, speed, fused)


def standard(source: Path, out: Path) -> dict[str, int]:
    """Writes our portable model with standard Attention nodes; returns how many."""
    graph, goal = portable(source, opset=23), target("onnx")
    PassManager().run(build("fuse{rules=attention,attention-bias}"), graph, Context(goal))
    save(graph, out)
    return {"Attention": sum(node.op == "Attention" for node in graph.walk())}


def fuse(source: Path, out: Path, model: Transformer, multi_head: bool) -> dict[str, int]:
    """Writes what the runtime's offline optimizer makes of a model; returns what it fused."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options: Any = FusionOptions(model.kind)
    options.use_multi_head_attention = multi_head
    with quiet():
        made = optimizer.optimize_model(
            str(source), model.kind, model.heads, model.width, options, opt_level=0, use_gpu=False
        )
        made.save_model_to_file(str(out))
        return {op: count for op, count in made.get_fused_operator_statistics().items() if count}


def stretched(feed: Feeds, length: int) -> Feeds:
    """The feed with sentences of another length, made of the same words again; as it is for 0."""
    if not length:
        return feed
    return {name: np.resize(values, (len(values), length)) for name, values in feed.items()}


if __name__ == "__main__":
    sys.exit(main())
