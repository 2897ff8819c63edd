"""Golden cases: one text file holds a pipeline, a model and the printed graph that the pipeline must make of it.

The first line is `# what the case shows`; then come sections, each opened by `--- name`:

    pipeline    the text that `--passes` takes
    model       ONNX text; a line `<ir_version ...>` may be left out (IR 8, operator set 17)
    constants   `w = normal(8, 3, 3, 3, seed=1)`: initializers too large to spell out; also uniform (0.5 to 1.5) and
                integers(low, high, shape...); dtype= and seed= are optional
    inputs      `x = integers(0, 5)`: range of an input's values; without it floats are normal and integers 0 to 2
    bindings    `N=1 M=2`, a line for each binding of the symbolic dims to try; three are made up without it
    target      the target the passes run for (default onnx), on an x86-64 with int8 dot products
    sqnr        lowest signal-to-noise ratio in dB; without it outputs must be equal to rounding
    result      what `optimizer.text.show` prints afterwards; `pytest --update` writes it
    note        anything worth knowing
"""

from __future__ import annotations

import ast
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from optimizer.evaluate import Feeds
from optimizer.graph import Array
from optimizer.targets import Cpu, Target, target
from tests.conftest import model as parse

SECTIONS = ("pipeline", "model", "constants", "inputs", "bindings", "target", "sqnr", "note", "result")


@dataclass
class Case:
    """A parsed golden file."""

    path: Path
    title: str
    sections: dict[str, str]

    @property
    def pipeline(self) -> str:
        return " ".join(self.sections["pipeline"].split())

    @property
    def result(self) -> str:
        return self.sections.get("result", "")

    @property
    def sqnr(self) -> float | None:
        return float(self.sections["sqnr"]) if "sqnr" in self.sections else None

    @property
    def target(self) -> Target:
        return replace(target(self.sections.get("target", "onnx").strip()), cpu=Cpu("x86_64", True))

    def model(self) -> onnx.ModelProto:
        made = parse(self.sections["model"])
        for name, array in self._arrays("constants").items():
            made.graph.initializer.append(numpy_helper.from_array(array, name))
        return made

    def feeds(self) -> list[Feeds]:
        """One feed for each binding of the model's symbolic dims; the seed is the file's name."""
        model, seed = self.model(), zlib.crc32(self.path.stem.encode())
        given = {v.name for v in model.graph.initializer}
        infos = [v for v in model.graph.input if v.name not in given]
        symbols = sorted({d.dim_param for v in infos for d in v.type.tensor_type.shape.dim if d.dim_param})
        feeds = []
        for number, binding in enumerate(self._bindings(symbols)):
            rng = np.random.default_rng(seed + number)
            feeds.append({v.name: self._input(v, binding, rng) for v in infos})
        return feeds

    def update(self, result: str) -> None:
        """Writes the file anew with another result."""
        sections = self.sections | {"result": result}
        parts = [f"--- {name}\n{sections[name].strip()}\n" for name in SECTIONS if name in sections]
        self.path.write_text(f"# {self.title}\n" + "".join(parts))

    def _bindings(self, symbols: list[str]) -> Iterator[dict[str, int]]:
        if "bindings" in self.sections:
            for line in self.sections["bindings"].strip().splitlines():
                yield {key: int(value) for key, _, value in (word.partition("=") for word in line.split())}
            return
        for start in range(3):
            yield dict(zip(symbols, itertools.islice(itertools.cycle((2, 1, 5)), start, None), strict=False))

    def _input(self, info: onnx.ValueInfoProto, binding: dict[str, int], rng: np.random.Generator) -> Array:
        kind = info.type.tensor_type
        shape = [binding[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if info.name in (calls := _calls(self.sections.get("inputs", ""))):
            return _draw(*calls[info.name], shape=shape, dtype=dtype, rng=rng)
        if dtype.kind == "O":
            return np.array([f"s{n}" for n in rng.integers(0, 4, shape).reshape(-1)], object).reshape(shape)
        made = (
            rng.standard_normal(shape) if dtype.kind not in "iub" else rng.integers(0, 2 + (dtype.kind != "b"), shape)
        )
        return np.asarray(made).astype(dtype)

    def _arrays(self, section: str) -> dict[str, Array]:
        found = {}
        for name, (function, numbers, options) in _calls(self.sections.get(section, "")).items():
            rng = np.random.default_rng(options.get("seed", 0))
            bounds = 2 if function == "integers" else 0
            dtype = np.dtype(options.get("dtype", "int64" if bounds else "float32"))
            shape = [int(n) for n in numbers[bounds:]]
            found[name] = _draw(function, numbers[:bounds], options, shape=shape, dtype=dtype, rng=rng)
        return found


def cases(folder: Path) -> list[Case]:
    """Every golden file under the folder, in order of its path."""
    return [read(path) for path in sorted(folder.rglob("*.txt"))]


def read(path: Path) -> Case:
    title, _, rest = path.read_text().partition("\n")
    assert title.startswith("# "), f"{path}: the first line must say what the case shows: '# ...'"
    sections: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line.startswith("--- "):
            name = line[4:].strip()
            assert name in SECTIONS and name not in sections, f"{path}: no section '{name}' here"
            sections[name] = ""
        elif name:
            sections[name] += line + "\n"
    assert {"pipeline", "model"} <= sections.keys(), f"{path}: needs '--- pipeline' and '--- model'"
    return Case(path, title[2:].strip(), sections)


def _calls(text: str) -> dict[str, tuple[str, list[float], dict[str, int | str]]]:
    """Reads lines `name = function(1, 2, key=3)`."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, call = line.partition("=")
        node = ast.parse(call.strip(), mode="eval").body
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), f"not a call: {line}"
        options = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        found[name.strip()] = (node.func.id, [ast.literal_eval(a) for a in node.args], options)
    return found


def _draw(
    function: str,
    numbers: list[float],
    options: dict[str, int | str],
    *,
    shape: list[int],
    dtype: np.dtype[np.generic],
    rng: np.random.Generator,
) -> Array:
    if function == "normal":
        return rng.standard_normal(shape).astype(dtype)
    if function == "uniform":
        low, high = numbers or (0.5, 1.5)
        return rng.uniform(low, high, shape).astype(dtype)
    assert function == "integers", f"no way to draw '{function}': normal, uniform or integers"
    return rng.integers(int(numbers[0]), int(numbers[1]), shape).astype(dtype)
