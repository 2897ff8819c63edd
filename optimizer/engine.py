"""What a compiling backend is told, and what it tells: options of the build, sizes it must serve, what it built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.data import Input
from optimizer.errors import ModelError, UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The sizes of one input an engine must serve, and the one to be fastest at."""

    least: Shape
    best: Shape
    most: Shape

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.least, self.best, self.most))


@dataclass(frozen=True)
class EngineOptions:
    """How to build an engine.

    `gpus`: compute capabilities such as `sm_89`; none: the GPU that is present, else the backend's default.
    `profiles`: by input name, for the inputs with unknown dims. `workspace`: bytes of device memory that building may
    use. `level`: TensorRT's builder optimization level, 0 to 5. `cache`: the folder of timing caches, or None.
    `plugins`: shared libraries to load, in order.
    """

    gpus: tuple[str, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    workspace: int | None = None
    level: int | None = None
    cache: Path | None = None
    strip: bool = False
    refit: bool = False
    version_compatible: bool = False
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Built:
    """A file to open. `facts`: what the manifest says of it (JSON). `precision`: of the weighted ONNX nodes, by name.

    `precision` is `int8`, `fp16`, `bf16`, `fp32`, as the runtime typed the node's inputs; empty where nothing was
    compiled.
    """

    file: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, str] = field(default_factory=dict)


class BuildError(ModelError):
    """The runtime's compiler refuses the model; `nodes` names the ONNX nodes it complains about, where it says so."""

    def __init__(self, message: str, nodes: tuple[str, ...] = ()):
        super().__init__(message)
        self.nodes = nodes


def parse_profile(text: str) -> tuple[str, Profile]:
    """(input, profile) of `x=1x3x224x224:8x3x224x224:32x3x224x224`. Raises UserError where it is none."""
    name, _, sizes = text.rpartition("=")
    try:
        shapes = [tuple(int(size) for size in shape.split("x")) if shape else () for shape in sizes.split(":")]
    except ValueError:
        shapes = []
    if not name or len(shapes) != 3:
        raise UserError(f"--shape {text} is not input=MIN:OPT:MAX, such as x=1x3x224x224:8x3x224x224:32x3x224x224")
    least, best, most = shapes
    if len({len(least), len(best), len(most)}) != 1 or not all(
        0 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True)
    ):
        raise UserError(f"--shape {text}: give three shapes of one rank, each size min <= opt <= max")
    return name, Profile(least, best, most)


def make_profiles(
    inputs: Mapping[str, Input], seen: Mapping[str, Counter[Shape]], given: Mapping[str, Profile]
) -> dict[str, Profile]:
    """A profile for every input with unknown dims: as given, else what the feeds had, at its commonest size best.

    Raises UserError for a profile of no input, or of a shape that the input cannot have.
    """
    found = {}
    for name, want in inputs.items():
        if name in given and _sizes(want):
            found[name] = given[name]
            continue
        if name in given:
            _check_profile(want, given[name])
        if want.shape is None or all(isinstance(dim, int) for dim in want.shape):
            continue
        if name in given:
            found[name] = given[name]
        elif shapes := seen.get(name):
            least, most = (tuple(map(end, zip(*shapes, strict=True))) for end in (min, max))
            found[name] = Profile(least, shapes.most_common(1)[0][0], most)
    if unknown := [name for name in given if name not in inputs]:
        raise UserError(f"--shape names '{unknown[0]}', but the model's inputs are {', '.join(inputs)}")
    return found


def _sizes(want: Input) -> bool:
    """True for an input whose values may be sizes: its profile holds those values, and the backend judges them."""
    static = want.shape is not None and all(isinstance(dim, int) for dim in want.shape)
    return static and len(want.shape or ()) <= 1 and want.dtype is not None and want.dtype.kind in "iu"


def _check_profile(want: Input, profile: Profile) -> None:
    for shape in (profile.least, profile.best, profile.most):
        dims = want.shape if want.shape is not None else shape
        if len(dims) != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(dims, shape, strict=True)):
            raise UserError(f"--shape {want.name}={profile} does not fit the input, which is {want}")
