"""The benchmark's models: random-weight exports of well-known nets by torch, and nets written in code.

    python -m benchmarks.exports [--only NAME,NAME] [--out FOLDER]

Opset 17, dynamic batch (and sequence), seeded. Made on first use into the user's cache; `path` gives the file. The
exports need `pip install torch==2.13.0 transformers` to be made (that pin: another version exports other nodes), but
not to be read from the cache. A file there has run in ONNX Runtime: it is finite and tells its inputs apart.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from platformdirs import user_cache_path

from benchmarks import nets
from models import data, zoo
from optimizer.errors import UnavailableError, UserError

OPSET = 17
WORDS, TOKENS, TOPICS = 30522, 32, 20
Module = Any  # torch.nn.Module: types must not depend on whether torch is installed


@dataclass(frozen=True)
class Architecture:
    """A network of the transformers package: `family` names its classes, `options` go to its configuration."""

    family: str
    head: str = "ForImageClassification"
    options: Mapping[str, Any] = field(default_factory=dict)


_B0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "image_size": 224, "dropout_rate": 0.2}
_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
_BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
ARCHITECTURES = {
    "resnet18": Architecture("ResNet", options=_BASIC),
    "resnet50": Architecture("ResNet"),
    "vit-s": Architecture("ViT", options=_SMALL),
    "bert-base": Architecture("Bert", "ForSequenceClassification", {"num_labels": TOPICS}),
    "mobilenetv2": Architecture("MobileNetV2"),
    "efficientnet-b0": Architecture("EfficientNet", options=_B0),
    "convnext-t": Architecture("ConvNext"),
    "swin-t": Architecture("Swin"),
}
NAMES = (*nets.ALL, *ARCHITECTURES)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(NAMES), help="names, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, default=None, help="folder (default: the user's cache)")
    arguments = parser.parse_args(argv)
    print(f"{'model':<16} {'nodes':>6} {'M params':>9} {'MB':>7} {'s':>6}")
    try:
        for name in arguments.only.split(","):
            start = time.perf_counter()
            print(_row(path(name, arguments.out), time.perf_counter() - start), flush=True)
    except (UserError, UnavailableError) as error:
        print(f"exports: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def path(name: str, folder: Path | None = None) -> Path:
    """The model's file, made now if it is not there; by default in the user's cache.

    Raises UserError for a name that is not in NAMES, UnavailableError where torch is needed and missing.
    """
    if name not in NAMES:
        raise UserError(f"no benchmark model is called '{name}'; there are {', '.join(NAMES)}")
    folder = folder or user_cache_path("onnx-optimize") / "exports"
    file = folder / f"{name}.onnx"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as work:  # complete or absent
            new = Path(work) / file.name
            _make(name, new)
            _check(new)
            new.replace(file)
    return file


def any_path(name: str) -> Path:
    """The file of one of these models or of one of the zoo's."""
    return path(name) if name in NAMES else zoo.path(name)


def typical(name: str, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """One input of one of these models, seeded, or of one of the zoo's, real."""
    return feeds(model, 1) if name in NAMES else data.typical(name)


def feeds(model: onnx.ModelProto, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs by name for a batch of `count`: pictures, or sentences of random words."""
    random = np.random.default_rng(seed)
    tokens = (count, TOKENS)
    made: dict[str, Callable[[], np.ndarray]] = {
        "input_ids": lambda: random.integers(0, WORDS, tokens),
        "attention_mask": lambda: np.ones(tokens, np.int64),
        "token_type_ids": lambda: np.zeros(tokens, np.int64),
    }
    return {value.name: made.get(value.name, partial(nets.pictures, count, seed))() for value in model.graph.input}


def _make(name: str, file: Path) -> None:
    if name in nets.ALL:
        onnx.save(nets.ALL[name](), file)
    else:
        _export(_network(ARCHITECTURES[name]), file)


def _check(file: Path) -> None:
    """Fails unless the model runs with one input and with two, is finite, and answers different inputs differently."""
    from onnxruntime import InferenceSession

    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    (pair,) = session.run(None, feeds(model, 2))
    (single,) = session.run(None, {name: values[:1] for name, values in feeds(model, 2).items()})
    assert np.isfinite(pair).all(), f"{file.stem} overflows"
    assert np.allclose(single, pair[:1], rtol=1e-3, atol=1e-3), f"{file.stem} mixes the inputs of a batch"
    assert (pair[0] - pair[1]).std() > 0.05 * pair.std(), f"{file.stem} answers every input alike"


def _row(file: Path, seconds: float) -> str:
    graph = onnx.load(file).graph
    parameters = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    size = file.stat().st_size
    return f"{file.stem:<16} {len(graph.node):>6} {parameters / 1e6:>9.2f} {size / 1e6:>7.1f} {seconds:>6.1f}"


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UnavailableError(
            f"{package} is not here ({error}), and without it the model cannot be exported: "
            "pip install torch==2.13.0 transformers, or take a file made elsewhere into the cache"
        ) from None


def _network(architecture: Architecture) -> Module:
    """The network, ready for inference, with seeded weights of a size as after training."""
    torch, transformers = _import("torch"), _import("transformers")
    torch.manual_seed(0)
    options = {"num_labels": nets.CLASSES, **architecture.options}
    config = getattr(transformers, f"{architecture.family}Config")(**options)
    # Attention written out, as exporters did before it was one call; the other form asks shapes for its scale.
    config._attn_implementation = "eager"
    network = getattr(transformers, architecture.family + architecture.head)(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            _draw(name, parameter)
        _measure(torch, network)
    return network


def _draw(name: str, parameter: Any) -> None:
    """Replaces what starts as all ones, all zeros or next to nothing, so that no part of the net is without effect."""
    if "layer_scale" in name:  # starts at 1e-6
        parameter.uniform_(0.1, 0.5)
    elif "bias_table" in name:
        parameter.normal_(0, 0.5)
    elif name.endswith("bias"):
        parameter.normal_(0, 0.1)
    elif name.endswith("weight") and parameter.ndim == 1:  # of a normalization
        parameter.uniform_(0.5, 1.5)
    elif name.endswith("weight") and "embeddings.weight" not in name:
        fan = parameter[0].numel()
        parameter.normal_(0, ((2 if parameter.ndim == 4 else 1) / fan) ** 0.5)


def _measure(torch: Any, network: Module) -> None:
    """Batch normalization's statistics, as measured on pictures in one run."""
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    if not layers:
        return
    for layer in layers:
        layer.momentum = None  # the plain mean of what it sees
        layer.reset_running_stats()
        layer.train()
    network(torch.from_numpy(nets.pictures(16)))
    network.eval()


def _export(network: Module, file: Path) -> None:
    torch = _import("torch")
    picture = network.main_input_name != "input_ids"
    names = ["pixel_values"] if picture else ["input_ids", "attention_mask", "token_type_ids"]
    free = {0: "batch"} if picture else {0: "batch", 1: "sequence"}
    words = torch.ones((2, TOKENS), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on sizes that are constant here
        torch.onnx.export(
            network,
            (torch.from_numpy(nets.pictures(2)),) if picture else (words,) * len(names),
            file,
            dynamo=False,  # the other exporter writes opset 18 and newer
            opset_version=OPSET,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={**dict.fromkeys(names, free), "logits": {0: "batch"}},
        )


if __name__ == "__main__":
    sys.exit(main())
