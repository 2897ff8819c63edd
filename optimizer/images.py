"""Feeds from pictures: a folder of them, and a line of text that says how the model wants its pixels.

`--preprocess imagenet`, or options such as `size=224 crop=center layout=nchw colour=rgb scale=255 mean=.5 std=.5`, or
a preset with changes: `imagenet colour=bgr`. Values are (pixel / scale - mean) / std, channel by channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import DataError
from optimizer.evaluate import Feeds
from optimizer.graph import Array

if TYPE_CHECKING:
    from PIL import Image

    from optimizer.data import Input

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
PRESETS = {"imagenet": "size=224 resize=256 mean=0.485,0.456,0.406 std=0.229,0.224,0.225"}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an input. `size` is (height, width), None: what the model's input says.

    `crop`: "center" scales the short side to `resize` (0: just enough) and cuts the middle; "none" stretches.
    """

    size: tuple[int, int] | None = None
    resize: int = 0
    crop: str = "center"
    layout: str = "nchw"
    colour: str = "rgb"
    filter: str = "bilinear"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, image: Image.Image, size: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """A batch of one, [1,C,H,W] or [1,H,W,C], of the model's dtype."""
        pixels = np.asarray(self._cut(image, size), np.float32)
        if self.colour == "grey":
            pixels = pixels[:, :, None]
        if self.colour == "bgr":
            pixels = pixels[:, :, ::-1]
        values = (pixels / self.scale - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.layout == "nchw":
            values = values.transpose(2, 0, 1)
        if dtype.kind in "iu":
            values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return np.ascontiguousarray(values[None].astype(dtype))

    def _cut(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        from PIL import Image

        image = image.convert("L" if self.colour == "grey" else "RGB")
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        height, width = size
        if self.crop == "none":
            return image.resize((width, height), filters[self.filter])
        ratio = max(height / image.height, width / image.width)
        if self.resize:
            ratio = max(ratio, self.resize / min(image.height, image.width))
        scaled = image.resize(
            (max(width, round(image.width * ratio)), max(height, round(image.height * ratio))), filters[self.filter]
        )
        left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
        return scaled.crop((left, top, left + width, top + height))


_CHOICES = {
    "crop": ("center", "none"),
    "layout": ("nchw", "nhwc"),
    "colour": ("rgb", "bgr", "grey"),
    "filter": ("bilinear", "bicubic"),
}


def parse(text: str) -> Preprocess:
    """Reads `--preprocess`. Raises DataError with the options or presets there are."""
    values: dict[str, Any] = {}
    words = [w for word in text.split() for w in (PRESETS[word].split() if word in PRESETS else [word])]
    names = [f.name for f in dataclasses.fields(Preprocess)]
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            near = get_close_matches(word, PRESETS, 1) or sorted(PRESETS)
            raise DataError(
                f"--preprocess knows no preset '{word}'; did you mean {near[0]}? Options look like size=224"
            )
        if key not in names:
            near = get_close_matches(key, names, 3) or names
            raise DataError(f"--preprocess has no option '{key}'; did you mean {' or '.join(near)}?")
        try:
            values[key] = _value(key, value)
        except ValueError as error:
            raise DataError(f"--preprocess cannot take {word}: {error}") from None
    return Preprocess(**values)


def _value(key: str, value: str) -> Any:
    if key == "size":
        height, _, width = value.partition("x")
        return int(height), int(width or height)
    if key == "resize":
        return int(value)
    if key == "scale":
        return float(value)
    if key in ("mean", "std"):
        return tuple(float(v) for v in value.split(","))
    if value not in _CHOICES[key]:
        raise ValueError(f"one of {', '.join(_CHOICES[key])}")
    return value


@dataclass(frozen=True)
class Images:
    """One feed per picture, for a model with one input of rank 4."""

    name: str
    files: tuple[Path, ...]
    input: Input
    preprocess: Preprocess
    size: tuple[int, int]

    @staticmethod
    def of(name: str, files: tuple[Path, ...], inputs: Mapping[str, Input], text: str | None) -> Images:
        """Raises DataError where the model does not take one picture, or nobody says its size."""
        if text is None:
            raise DataError(f"--data '{name}' holds pictures: say how the model wants them, e.g. --preprocess imagenet")
        _pillow()
        wanted = [i for i in inputs.values() if not i.optional]
        if len(wanted) != 1 or wanted[0].shape is None or len(wanted[0].shape) != 4 or wanted[0].dtype is None:
            takes = ", ".join(f"'{i.name}' {i}" for i in wanted)
            raise DataError(f"--data '{name}' holds pictures, but the model takes {takes}: save .npz files instead")
        how = parse(text)
        shape = wanted[0].shape
        height, width = shape[2:] if how.layout == "nchw" else shape[1:3]
        size = how.size or ((height, width) if isinstance(height, int) and isinstance(width, int) else None)
        if size is None:
            raise DataError(
                f"the model leaves the size of '{wanted[0].name}' open: add it to --preprocess, e.g. size=224"
            )
        return Images(name, files, wanted[0], how, size)

    def glance(self, inputs: Mapping[str, Input]) -> None:
        """Opens the first picture only: the others are read when all feeds are examined."""
        from optimizer.data import check

        check(*next(self.read((0,))), inputs)

    def read(self, places: Collection[int] | None) -> Iterator[tuple[str, Feeds]]:
        from PIL import Image

        assert self.input.dtype is not None
        for place in range(len(self.files)) if places is None else places:
            path = self.files[place]
            try:
                with Image.open(path) as image:
                    pixels = self.preprocess(image, self.size, self.input.dtype)
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"'{path}' cannot be read as a picture: {error}") from error
            except ValueError as error:
                raise DataError(f"'{path}' does not fit --preprocess: {error}") from error
            yield f"'{path}'", {self.input.name: pixels}


def _pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise DataError("reading pictures needs Pillow: pip install 'onnx-optimize[images]'") from None
