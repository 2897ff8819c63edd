"""Calibration and check inputs: where `--data` finds them, whether they fit the model, and how they are split.

Every feed is checked against the model's inputs before anything runs on it (headers of all files first, then each
feed once, which also gives the digest). Batches are streamed: at most one is in memory.

Split: of n feeds every k-th is held out for checking, k = max(4, n / 32), so at most 32 are; the others calibrate.
Two or three feeds hold out the last; a single one serves both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from optimizer.errors import DataError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.functions import is_function
from optimizer.graph import Dim, Graph
from optimizer.statistics import Digest

DEFAULT = "random:16"
HELD_OUT = 32  # feeds at most
EVERY = 4

Given = str | Path | Sequence[Feeds] | Callable[[], Iterable[Feeds]]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Input:
    """What the model takes under one name; `optional` where it has a default of its own."""

    name: str
    dtype: np.dtype[Any] | None  # None: not a tensor, or not said
    shape: tuple[Dim, ...] | None
    optional: bool = False

    def __str__(self) -> str:
        shape = "" if self.shape is None else f"[{','.join('?' if d is None else str(d) for d in self.shape)}]"
        return f"{self.dtype}{shape}"


class Source(Protocol):
    """Somewhere feeds come from; `read` may be called again and again, and gives the same feeds each time."""

    @property
    def name(self) -> str: ...

    def glance(self, inputs: Mapping[str, Input]) -> None:
        """Checks what can be checked without reading a feed. Raises DataError."""

    def read(self, places: Collection[int] | None) -> Iterator[tuple[str, Feeds]]:
        """(what to call it in a message, feed) for these places in order, or for all."""


@dataclass(frozen=True)
class Part:
    """Some of a source's feeds, as `Batches`."""

    source: Source
    places: tuple[int, ...]

    def __iter__(self) -> Iterator[Feeds]:
        return (feed for _, feed in self.source.read(self.places))

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Data:
    """Feeds ready for use. `digest` is the SHA-256 over names, dtypes, shapes and values of all of them, in order."""

    source: str
    calibration: Part
    check: Part
    digest: str
    synthetic: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)  # chosen for unknown dims of synthetic inputs
    shapes: Mapping[str, Counter[tuple[int, ...]]] = field(default_factory=dict)  # of each input, how often each


def interface(graph: Graph) -> dict[str, Input]:
    """The model's inputs by name, in order; those with a default value last."""
    found = {}
    for tensor in [*graph.inputs, *graph.overridable.values()]:
        dtype = None if tensor.dtype is None else np.dtype(tensor.dtype)
        shape = None if tensor.shape is None else tuple(tensor.shape)
        found[tensor.name] = Input(tensor.name, dtype, shape, tensor.name in graph.overridable)
    return found


def open_data(
    given: Given | None,
    graph: Graph,
    evaluate: Evaluate,
    *,
    preprocess: str | None = None,
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Data:
    """Finds, checks and splits the feeds. Raises DataError, naming the feed and the input, at the first misfit.

    `fixed` inputs have the one value given: random feeds get it, others must hold it.
    """
    from optimizer import synthetic

    inputs = interface(graph)
    random = given is None or (isinstance(given, str) and given.startswith("random"))
    if random:
        source: Source = synthetic.source(str(given or DEFAULT), graph, inputs, evaluate, seed, fixed or {})
    else:
        source = find(given, inputs, preprocess)  # type: ignore[arg-type]  # None was dealt with above
    source.glance(inputs)
    count, digest, shapes = examine(source, inputs, fixed or {}, tell)
    calibration, held = split(count)
    sizes = getattr(source, "sizes", {})
    return Data(source.name, Part(source, calibration), Part(source, held), digest, random, sizes, shapes)


def find(given: Given, inputs: Mapping[str, Input], preprocess: str | None) -> Source:
    """The source a spec names. Raises DataError with the forms there are."""
    from optimizer.sources import Arrays, Calls

    if not isinstance(given, str | Path):
        return Calls.of(given)
    spec = str(given)
    if is_function(spec):
        return Calls.load(spec)
    files = _files(spec)
    kinds = {path.suffix.lower() for path in files}
    if kinds <= {".npz"} or kinds <= {".npy"}:
        return Arrays(spec, files, tuple(inputs))
    from optimizer.images import SUFFIXES, Images

    if kinds <= SUFFIXES:
        return Images.of(spec, files, inputs, preprocess)
    raise DataError(f"--data '{spec}' mixes kinds of files ({', '.join(sorted(kinds))}): give one kind, say '*.npz'")


def _files(spec: str) -> tuple[Path, ...]:
    import glob

    from optimizer.images import SUFFIXES

    path = Path(spec)
    if not path.is_dir():
        found = [path] if path.is_file() else [Path(p) for p in sorted(glob.glob(spec, recursive=True))]
        known = [p for p in found if p.suffix.lower() in {".npz", ".npy", *SUFFIXES}]
        if found and not known:
            raise DataError(f"--data '{spec}': '{found[0].name}' is neither .npz, .npy nor a picture")
        if not known:
            raise DataError(
                f"--data '{spec}' matches no file; give 'dir/*.npz', a folder of pictures, file.py:function or "
                "random:16"
            )
        return tuple(known)
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    for kinds in (SUFFIXES, {".npz"}, {".npy"}):
        if chosen := tuple(p for p in inside if p.suffix.lower() in kinds):
            return chosen
    raise DataError(f"--data '{spec}': the folder holds no .npz, .npy or picture")


def examine(
    source: Source, inputs: Mapping[str, Input], fixed: Mapping[str, float], tell: Tell
) -> tuple[int, str, dict[str, Counter[tuple[int, ...]]]]:
    """Checks every feed; returns their number, their digest, and how often each input has which shape."""
    digest, count = Digest(), 0
    shapes: dict[str, Counter[tuple[int, ...]]] = {}
    for label, feed in source.read(None):
        check(label, feed, inputs)
        check_fixed(label, feed, fixed)
        arrays = {n: np.asarray(a) for n, a in feed.items() if inputs[n].dtype is not None}
        digest.add({n: a.astype(str) if a.dtype.kind == "O" else a for n, a in arrays.items()})
        for name, array in arrays.items():
            shapes.setdefault(name, Counter())[array.shape] += 1
        count += 1
        tell("checking the data", count, 0)
    if count == 0:
        raise DataError(f"--data '{source.name}' holds no feed")
    return count, digest.hexdigest(), shapes


def split(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places that calibrate and places held out."""
    if count == 1:
        return (0,), (0,)
    step = max(EVERY, math.ceil(count / HELD_OUT))
    held = tuple(range(step - 1, count, step)) or (count - 1,)
    return tuple(place for place in range(count) if place not in set(held)), held


def check(label: str, feed: Any, inputs: Mapping[str, Input]) -> None:
    """Raises DataError unless the feed has the model's names, dtypes, ranks and fixed dims, and finite numbers."""
    if not isinstance(feed, Mapping):
        raise DataError(f"{label} is a {type(feed).__name__}, not a dict of input name to array")
    check_names(label, feed, inputs)
    for name, array in feed.items():
        if inputs[name].dtype is None:  # a sequence or a map: the runtime will tell
            continue
        if not isinstance(array, np.ndarray | np.generic):
            raise DataError(
                f"{label}: '{name}' is a {type(array).__name__}: make it a numpy array of {inputs[name].dtype}"
            )
        check_kind(label, inputs[name], array.dtype, array.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = "NaN" if np.isnan(array).any() else "infinity"
            raise DataError(f"{label}: '{name}' holds {bad}: clean the data, statistics of it would mean nothing")


def check_names(label: str, names: Iterable[str], inputs: Mapping[str, Input]) -> None:
    names = list(names)
    takes = ", ".join(f"'{n}'" for n in inputs)
    if unknown := [n for n in names if n not in inputs]:
        raise DataError(f"{label} holds '{unknown[0]}', but the model's inputs are {takes}: rename it")
    if missing := [n for n, i in inputs.items() if n not in names and not i.optional]:
        has = ", ".join(f"'{n}'" for n in names) or "nothing"
        raise DataError(f"{label} lacks the input '{missing[0]}' (it holds {has}; the model takes {takes}): add it")


def check_kind(label: str, want: Input, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if want.dtype is not None and dtype != want.dtype and not (dtype.kind in "OSU" and want.dtype.kind in "OSU"):
        raise DataError(
            f"{label}: '{want.name}' is {dtype}, the model takes {want.dtype}: save it with .astype('{want.dtype}')"
        )
    if want.shape is None:
        return
    has = ",".join(map(str, shape))
    if len(shape) != len(want.shape):
        raise DataError(
            f"{label}: '{want.name}' is [{has}], rank {len(shape)}, the model takes {want}, rank {len(want.shape)}: "
            "reshape it (a feed holds its batch axis)"
        )
    for axis, (size, dim) in enumerate(zip(shape, want.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise DataError(f"{label}: '{want.name}' is [{has}], the model takes {want}: axis {axis} must be {dim}")


def check_fixed(label: str, feed: Feeds, fixed: Mapping[str, float]) -> None:
    """Raises DataError where an input that is fixed to one value has another."""
    for name, value in fixed.items():
        other = np.asarray(feed[name])[np.asarray(feed[name]) != value] if name in feed else np.zeros(0)
        if other.size:
            raise DataError(
                f"{label}: '{name}' holds {other.reshape(-1)[0]}, but --freeze makes it {value:g}: give inputs that "
                "have this value"
            )
