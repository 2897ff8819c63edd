"""One seed's fuzzed model through the simplifier: the same outputs on feeds of every kind and size, or the reason.

The feeds hold negative numbers, zeros of both signs, tiny, large and huge ones, infinities and NaN, under several
bindings of the symbolic dims, 1 and 0 among them. Each feed is judged by itself, so that huge numbers excuse no error
elsewhere. Where an error exceeds rounding, the original is run again with inputs a unit in the last place away: what
that alone changes by as much is ill-conditioned, not wrong. Sums and products in another order overflow at other
places: feeds of huge numbers on which either model makes an infinity of finite numbers are counted, not judged. Nor
are those on which ONNX Runtime makes another shape of the original than its operators define, as ReduceMean does of
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from optimizer import shapes
from optimizer.compare import Difference, compare
from optimizer.evaluate import Feeds, session
from optimizer.graph import Array
from optimizer.io import load
from optimizer.portable import simplify
from passes.shapes.interpret import Interpreter
from tests.fuzz import MORE, random_model, special_feeds

NUDGES, SPREAD = 4, 64  # how often inputs are nudged, and how much larger than that noise an error may be
NUDGE = 2.0**-23
OVERFLOWING = ("huge", "largest")  # kinds of feeds


@dataclass
class Verdict:
    """What became of a seed's model. `ran`: feeds that the original runs on; none where it does not load.

    `excused`: those of them on which outputs differ for a reason that is not ours, by that reason.
    """

    seed: int
    nodes: int = 0
    left: int = 0
    ran: int = 0
    excused: dict[str, int] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)


def judge(seed: int, keep: Path | None = None) -> Verdict:
    """Simplifies a seed's model and compares; where outputs differ, both models are kept in the folder `keep`."""
    model = random_model(seed, MORE)
    found = Verdict(seed, len(model.graph.node))
    try:
        original = session(model.SerializeToString(), threads=1)
    except Exception:  # the generator makes some that the runtime refuses: nothing to compare with
        return found
    simplified = None
    try:
        simplified = simplify(model)
        found.left = len(simplified.graph.node)
        made = session(simplified.SerializeToString(), threads=1)
        watch: tuple[Watch, Watch] | None = None
        for kind, feed in special_feeds(model, seed).items():
            if not (differences := _differences(original, made, feed, found)):
                continue
            watch = watch or (Watch(model), Watch(simplified))
            if excuse := _excuse(*watch, kind, feed):
                found.excused[excuse] = found.excused.get(excuse, 0) + 1
            else:
                found.why += [f"{kind}: {why}" for why in differences]
    except Exception as error:  # whatever it is, it is the finding
        found.why.append(f"{type(error).__name__}: {error}".splitlines()[0])
    if found.why and keep is not None:
        _keep(keep, found, model, simplified)
    return found


def _differences(original: Any, made: Any, feed: Feeds, found: Verdict) -> list[str]:
    try:
        expected = run(original, feed)
    except Exception:  # an empty tensor, most often: the original does not run on this feed
        return []
    found.ran += 1
    try:
        differences = compare([(expected, run(made, feed))])
    except Exception as error:  # of any class
        return [f"{type(error).__name__}: {error}".splitlines()[0]]
    wrong = {name: d for name, d in differences.items() if not _coarse(d).within_rounding()}
    noise = _noise(original, feed, expected) if wrong else {}
    return [f"{name} {d.broken or d.max_abs}" for name, d in wrong.items() if not _explained(d, noise.get(name))]


def _coarse(difference: Difference) -> Difference:
    """What the generator's models hold in float64 they have calculated in float32."""
    return replace(difference, grain="float32") if difference.grain == "float64" else difference


def run(model: Any, feed: Feeds) -> Feeds:
    names = [output.name for output in model.get_outputs()]
    return dict(zip(names, model.run(names, feed), strict=True))


def _noise(original: Any, feed: Feeds, expected: Feeds) -> dict[str, Difference]:
    """How far outputs move when float inputs do by about a unit in the last place."""
    rng = np.random.default_rng(0)
    nudged = [{name: _nudged(values, rng) for name, values in feed.items()} for _ in range(NUDGES)]
    return compare((expected, run(original, one)) for one in nudged)


def _nudged(values: Array, rng: np.random.Generator) -> Array:
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        return (values * (1 + NUDGE * rng.choice([-1, 1], values.shape))).astype(values.dtype)


def _explained(error: Difference, noise: Difference | None) -> bool:
    """True where rounding of the inputs alone does as much: as large an error, or a number lost to overflow."""
    if noise is None or error.dtype.startswith(("int", "bool")):
        return False
    return bool(noise.broken) if error.broken else error.max_abs <= SPREAD * noise.max_abs


class Watch:
    """A model of which every tensor in the main graph can be seen."""

    def __init__(self, model: onnx.ModelProto):
        graph = load(model)
        shapes.infer(graph)
        facts = Interpreter(graph)
        self.nodes = [node for node in graph.nodes if node.outputs[0].dtype is not None]
        self.dims = [facts.dims(node.outputs[0]) for node in self.nodes]
        watched, listed = onnx.ModelProto(), {output.name for output in model.graph.output}
        watched.CopyFrom(model)
        made = dict.fromkeys(node.outputs[0].name for node in self.nodes)
        watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in listed)
        self.session = session(watched.SerializeToString(), threads=1)

    def overflows(self, feed: Feeds) -> bool:
        """True where a node makes an infinity or NaN of finite numbers."""
        values = {**feed, **run(self.session, feed)}
        finite = {name: array.dtype.kind != "f" or bool(np.isfinite(array).all()) for name, array in values.items()}
        return any(
            not finite[node.outputs[0].name] and all(finite.get(t.name, True) for t in node.inputs)
            for node in self.nodes
        )

    def misshapes(self, feed: Feeds) -> bool:
        """True where the runtime gives a tensor dims other than those that inference is certain of."""
        values = run(self.session, feed)
        made = [values[node.outputs[0].name].shape for node in self.nodes]
        pairs = [(dims, shape) for dims, shape in zip(self.dims, made, strict=True) if dims is not None]
        return any(
            len(dims) != len(shape)
            or any(dim is not None and dim.value not in (None, size) for dim, size in zip(dims, shape, strict=True))
            for dims, shape in pairs
        )


def _excuse(original: Watch, simplified: Watch, kind: str, feed: Feeds) -> str:
    if original.misshapes(feed):
        return "shapes of the runtime"
    huge = kind.startswith(OVERFLOWING)
    return "overflow" if huge and (original.overflows(feed) or simplified.overflows(feed)) else ""


def _keep(folder: Path, found: Verdict, model: onnx.ModelProto, simplified: onnx.ModelProto | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / f"{found.seed}.onnx")
    if simplified is not None:
        onnx.save(simplified, folder / f"{found.seed}-simplified.onnx")
    (folder / f"{found.seed}.txt").write_text("\n".join(found.why) + "\n")
