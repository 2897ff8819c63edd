"""Classifiers and segmenters of pictures: ImageNet, page orientation, saliency, cut-outs, one known face."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from models.tasks.base import Feeds, Samples, Split, Verdict
from models.tasks.boxes import overlap_of, suppress
from models.tasks.drawing import Box, Chance, Picture, imagenet_samples, page, photos, scene
from models.tasks.reading import judge_classes

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
FACE: Box = (175, 65, 270, 185)  # in skimage's astronaut, 512 x 512
BICUBIC, LANCZOS, MIRROR = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Transpose.FLIP_LEFT_RIGHT


def planes(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W, C] as a batch of one, [1, C, H, W]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def normalised(picture: Picture) -> np.ndarray:
    """Pixels [H, W, 3], RGB, with ImageNet's mean and deviation taken out."""
    return (np.asarray(picture, np.float32) / 255 - MEAN) / DEVIATION


def _imagenet(split: Split) -> Iterator[tuple[Feeds, int]]:
    """Ten crops of each of twenty labelled pictures; to calibrate, endless crops of other photographs."""
    if split == "evaluation":
        chance, labelled = Chance(129), iter([sample for sample in imagenet_samples() for _ in range(10)])
    else:
        chance, labelled = Chance(1129), itertools.cycle([(photo, -1) for photo in photos()])
    for picture, label in labelled:
        pixels = (np.asarray(_crop(chance, _square(picture)), np.float32) - 127) / 128
        yield {"input": planes(pixels)}, label


def _square(picture: Picture) -> Picture:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, (picture.width + side) // 2, (picture.height + side) // 2)).resize(
        (224, 224), BICUBIC
    )


def _crop(chance: Chance, picture: Picture) -> Picture:
    """A random part, 55 to 95 % of a square picture's side, at its full size again, or its mirror image."""
    pick = chance.pick
    side = int(picture.width * pick.uniform(0.55, 0.95))
    left, top = pick.randint(0, picture.width - side), pick.randint(0, picture.width - side)
    part = picture.crop((left, top, left + side, top + side)).resize(picture.size, BICUBIC)
    return part.transpose(MIRROR) if pick.random() < 0.5 else part


def _orientations(split: Split) -> Iterator[tuple[Feeds, int]]:
    """Pages of text turned clockwise by 0, 90, 180 and 270 degrees: classes 0 to 3."""
    chance = Chance(111 if split == "evaluation" else 1111)
    while True:
        picture, _ = page(chance, chance.pick.choice([480, 640, 800]), chance.pick.randint(5, 20))
        for turns in range(4):
            turned = picture.rotate(-90 * turns, expand=True).resize((256, 256), LANCZOS)
            bgr = np.asarray(turned.crop((16, 16, 240, 240)), np.float32)[:, :, ::-1] / 255
            yield {"x": planes((bgr - MEAN) / DEVIATION)}, turns


def _saliency(split: Split) -> Iterator[tuple[Feeds, np.ndarray]]:
    chance = Chance(117 if split == "evaluation" else 1117)
    while True:
        picture, mask = scene(chance, 224, 0.25, 0.4)
        yield {"input_image": planes(normalised(picture))}, mask


def _cutouts(split: Split) -> Iterator[tuple[Feeds, np.ndarray]]:
    chance = Chance(119 if split == "evaluation" else 1119)
    while True:
        picture, mask = scene(chance, 1024, 0.5, 0.75)
        yield {"input": planes((np.asarray(picture, np.float32) - 128) / 256)}, mask


def _judge_masks(results: Iterable[tuple[list[np.ndarray], np.ndarray]]) -> Verdict:
    """Mean intersection over union at threshold .5; beside it, how often the peak lies on the object."""
    overlaps, pointed = [], []
    for outputs, mask in results:
        likelihood = outputs[0][0, 0]
        marked = likelihood > 0.5
        overlaps.append((marked & mask).sum() / max(1, (marked | mask).sum()))
        pointed.append(mask.flat[int(likelihood.argmax())])
    return Verdict(float(np.mean(overlaps)), {"peak on object": float(np.mean(pointed))})


def _views(split: Split) -> Iterator[tuple[Feeds, Box]]:
    """The astronaut moved, scaled, mirrored in 320 x 320, with her face's box; other photos to calibrate."""
    chance, picture = (Chance(121), photos()[0]) if split == "evaluation" else (Chance(1121), photos()[1])
    pick = chance.pick
    backgrounds = itertools.repeat(picture) if split == "evaluation" else itertools.cycle(photos()[1:])
    for photo in backgrounds:
        side = pick.randint(200, 320)
        left, top = pick.randint(0, 320 - side), pick.randint(0, 320 - side)
        canvas = Image.new("RGB", (320, 320))
        mirrored = pick.random() < 0.5
        canvas.paste((photo.transpose(MIRROR) if mirrored else photo).resize((side, side)), (left, top))
        x0, y0, x1, y1 = (edge * side / 512 for edge in FACE)
        if mirrored:
            x0, x1 = side - x1, side - x0
        yield (
            {"images": planes(np.asarray(canvas, np.float32) / 255)},
            (left + x0, top + y0, left + x1, top + y1),
        )


def _judge_face(results: Iterable[tuple[list[np.ndarray], Box]]) -> Verdict:
    """Share of views in which a box scored above .2 overlaps the face by one third or more."""
    found = []
    for outputs, face in results:
        raw = outputs[0][0].T  # [anchors, 4 + classes]: centre, size, class scores
        centre, size = raw[:, :2], raw[:, 2:4]
        edges = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        boxes = suppress(edges, raw[:, 4:].max(axis=1), least=0.2, overlap=0.45)
        found.append(any(overlap_of(box.box, face) >= 1 / 3 for box in boxes))
    return Verdict(float(np.mean(found)))


_CUTOUTS = Samples("mean IoU of pasted objects", 8, _cutouts, _judge_masks)
TASKS = {
    "efficientnet-lite0": Samples("ImageNet top-1 on random crops", 200, _imagenet, judge_classes),
    "pplcnet-orientation": Samples("top-1 of four rotations", 400, _orientations, judge_classes),
    "vit-saliency": Samples("mean IoU of pasted objects", 60, _saliency, _judge_masks),
    "isnet-fp16": _CUTOUTS,
    "isnet-fp32": _CUTOUTS,
    "isnet-int8": _CUTOUTS,
    "yolov8n-nudenet": Samples("views in which one known face is found", 20, _views, _judge_face),
}
