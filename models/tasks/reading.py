"""Text in pictures as PP-OCR reads it: where its lines are, which way up, and what they say."""

import string
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from models.tasks.base import Feeds, Samples, Split, Verdict
from models.tasks.boxes import f1, matches, widened
from models.tasks.drawing import Box, Chance, Picture, font, fonts, page, text_line, words
from models.zoo import path

CODES = string.ascii_letters + string.digits + "-/.:"
BILINEAR = Image.Resampling.BILINEAR


def paddle_pixels(picture: Picture) -> np.ndarray:
    """A picture as Paddle's models take it: float32 [1, 3, H, W], BGR, -1 to 1."""
    pixels = np.asarray(picture, np.float32)[:, :, ::-1] / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def lines(seed: int) -> Iterator[tuple[Picture, str]]:
    """Endless lines of text, some words or a code, more or less blurred and noisy, with what they say."""
    chance = Chance(seed)
    pick = chance.pick
    while True:
        if pick.random() < 0.7:
            text = " ".join(pick.choice(words()) for _ in range(pick.randint(1, 4)))
        else:
            text = "".join(pick.choice(CODES) for _ in range(pick.randint(5, 14)))
        face = font(pick.choice(fonts()), pick.randint(18, 40))
        picture = text_line(text, face, chance.colour(0, 90), chance.colour(170, 255))
        if pick.random() < 0.4:
            picture = picture.filter(ImageFilter.GaussianBlur(pick.uniform(0.3, 1.1)))
        yield chance.noisy(picture, pick.uniform(0, 14)), text


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and replacements that turn one text into the other (Levenshtein 1966)."""
    previous = list(range(len(right) + 1))
    for row, x in enumerate(left, 1):
        current = [row]
        for column, y in enumerate(right, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (x != y)))
        previous = current
    return previous[-1]


def greedy_ctc(best: np.ndarray, labels: list[str]) -> str:
    """The text of the best label of each step: repeats merged, label 0 (blank) dropped."""
    kept = [now for before, now in zip([-1, *best[:-1]], best, strict=True) if now not in (before, 0)]
    return "".join(labels[label] for label in kept)


def judge_texts(pairs: Iterable[tuple[str, str]], by: Literal["characters", "exact"]) -> Verdict:
    """Texts read against texts written, by share of right characters or of texts wholly right."""
    errors = total = exact = count = 0
    for read, written in pairs:
        errors += edit_distance(read, written)
        total += len(written)
        exact += read == written
        count += 1
    figures = {"characters": 1 - errors / total, "exact": exact / count}
    return Verdict(figures[by], figures)


def _recognition(split: Split) -> Iterator[tuple[Feeds, str]]:
    for picture, text in lines(103 if split == "evaluation" else 1103):
        yield {"x": _line_pixels(picture, round(48 * picture.width / picture.height))}, text


def _line_pixels(picture: Picture, width: int) -> np.ndarray:
    return paddle_pixels(picture.resize((max(48, min(1200, width)), 48), BILINEAR))


def _judge_recognition(results: Iterable[tuple[list[np.ndarray], str]]) -> Verdict:
    import onnx

    model = onnx.load(path("ppocr-rec"))
    characters = next(p.value for p in model.metadata_props if p.key == "character")
    labels = ["", *characters.splitlines(), " "]
    pairs = ((greedy_ctc(outputs[0][0].argmax(1), labels), text) for outputs, text in results)
    return judge_texts(((a.replace(" ", ""), b.replace(" ", "")) for a, b in pairs), "characters")


def _timed_recognition() -> Feeds:
    picture, _ = next(lines(1103))
    return {"x": _line_pixels(picture, 320)}


def _pages(split: Split) -> Iterator[tuple[Feeds, list[Box]]]:
    chance = Chance(105 if split == "evaluation" else 1105)
    sizes = [(640, 640)] if split == "evaluation" else [(640, 640), (640, 480), (480, 640)]
    while True:
        for width, height in sizes:
            picture, boxes = page(chance, 640, 16)
            yield {"x": paddle_pixels(picture.crop((0, 0, width, height)))}, boxes


def _judge_pages(results: Iterable[tuple[list[np.ndarray], list[Box]]]) -> Verdict:
    """Boxes of what differentiable binarization (Liao et al. 2020) marks, against lines widened like them."""
    hits = found = truth = 0
    for outputs, boxes in results:
        wide = [widened(box, 0.18 * (box[3] - box[1])) for box in boxes]
        predicted = _text_boxes(outputs[0][0, 0])
        hits += sum(matches(predicted, wide))
        found, truth = found + len(predicted), truth + len(wide)
    return Verdict(f1(hits, found, truth), {"found": found, "truth": truth})


def _text_boxes(likelihood: np.ndarray) -> list[Box]:
    from scipy import ndimage

    mask = ndimage.binary_dilation(likelihood > 0.3, np.ones((2, 2)))
    regions, _ = ndimage.label(mask)
    boxes = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
        inside = likelihood[rows, columns][regions[rows, columns] == number]
        width, height = columns.stop - columns.start, rows.stop - rows.start
        if inside.mean() < 0.5 or min(width, height) < 3:
            continue
        grow = 1.6 * width * height / (2 * (width + height))
        boxes.append(widened((columns.start, rows.start, columns.stop, rows.stop), grow))
    return boxes


def _directions(split: Split) -> Iterator[tuple[Feeds, int]]:
    """Each line upright (0) and upside down (1), 48 x 192, padded with zeros on the right."""
    for picture, _ in lines(9 if split == "evaluation" else 1009):
        for label in (0, 1):
            turned = picture.rotate(180) if label else picture
            width = min(192, round(48 * turned.width / turned.height))
            pixels = np.zeros((1, 3, 48, 192), np.float32)
            pixels[:, :, :, :width] = paddle_pixels(turned.resize((width, 48)))
            yield {"x": pixels}, label


def judge_classes(results: Iterable[tuple[list[np.ndarray], int]]) -> Verdict:
    """Share of samples whose highest score is their class."""
    right = [int(outputs[0][0].argmax()) == label for outputs, label in results]
    return Verdict(float(np.mean(right)))


TASKS = {
    "ppocr-det": Samples("F1 of text boxes at IoU .5", 20, _pages, _judge_pages),
    "ppocr-rec": Samples("1 - character error rate", 150, _recognition, _judge_recognition, _timed_recognition),
    "ppocr-cls": Samples("top-1 of two directions", 240, _directions, judge_classes),
}
