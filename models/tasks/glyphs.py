"""What ddddocr was made for: captchas to read, and single glyphs to find on photographs."""

import ast
import string
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageDraw

from models.tasks.base import Feeds, Samples, Split, Verdict
from models.tasks.boxes import Found, average_precision, clear_of, matches, suppress, widened
from models.tasks.drawing import Box, Chance, Picture, captcha, font, fonts, imagenet_samples, photos
from models.tasks.reading import greedy_ctc, judge_texts
from models.zoo import folder

INKS = ((255, 255, 255), (250, 220, 40), (20, 20, 20), (230, 40, 40))
GLYPHS = string.ascii_uppercase + string.digits


def _captchas(split: Split) -> Iterator[tuple[Feeds, str]]:
    chance = Chance(107 if split == "evaluation" else 1107)
    while True:
        picture, text = captcha(chance)
        yield {"input1": _captcha_pixels(picture, picture.width)}, text


def _captcha_pixels(picture: Picture, width: int) -> np.ndarray:
    grey = picture.resize((width, 64), Image.Resampling.LANCZOS).convert("L")
    return np.asarray(grey, np.float32)[None, None] / 255


def _timed_captcha() -> Feeds:
    picture, _ = captcha(Chance(1107))
    return {"input1": _captcha_pixels(picture, 180)}


def _charset(name: str) -> list[str]:
    """One of ddddocr's label tables, out of its module read as text."""
    tree = ast.parse((folder("ddddocr-charsets") / "charsets.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return list(ast.literal_eval(statement.value))
    raise ValueError(f"ddddocr's charsets.py has no {name}")


def _captcha_task(charset: str) -> Samples[str]:
    def judge(results: Iterable[tuple[list[np.ndarray], str]]) -> Verdict:
        labels = _charset(charset)
        pairs = ((greedy_ctc(_best(outputs[0]), labels).lower(), text) for outputs, text in results)
        return judge_texts(pairs, "exact")

    return Samples("captchas read exactly", 200, _captchas, judge, _timed_captcha)


def _best(scores: np.ndarray) -> np.ndarray:
    """Labels [T] of ddddocr's output: scores [T, 1, labels], whatever its declared shape says."""
    steps: np.ndarray = scores[:, 0] if scores.ndim == 3 else scores
    return np.asarray(steps.argmax(-1))


def _glyphs(split: Split) -> Iterator[tuple[Feeds, list[Box]]]:
    """Three to six outlined letters or digits on a photograph of 416 x 416."""
    chance = Chance(108 if split == "evaluation" else 1108)
    pick, backgrounds = chance.pick, photos() + [picture for picture, _ in imagenet_samples()]
    while True:
        picture, boxes = pick.choice(backgrounds).resize((416, 416)), list[Box]()
        for _ in range(pick.randint(3, 6)):
            if (box := _draw_glyph(chance, picture, boxes)) is not None:
                boxes.append(box)
        pixels = np.asarray(picture, np.float32)[:, :, ::-1].transpose(2, 0, 1)[None]
        yield {"images": np.ascontiguousarray(pixels)}, boxes


def _draw_glyph(chance: Chance, picture: Picture, taken: list[Box]) -> Box | None:
    """Draws one glyph where it touches no other; its box, or None where thirty tries found no place."""
    pick = chance.pick
    face, letter = font(pick.choice(fonts()), pick.randint(40, 72)), pick.choice(GLYPHS)
    left, top, right, bottom = (int(edge) for edge in face.getbbox(letter))
    width, height = right - left, bottom - top
    for _ in range(30):
        x, y = pick.randint(5, 410 - width), pick.randint(5, 410 - height)
        box = (x, y, x + width, y + height)
        if clear_of(widened(box, 8), taken):
            break
    else:
        return None
    ink = pick.choice(INKS)
    outline = (0, 0, 0) if pick.random() < 0.5 else (255, 255, 255)
    draw = ImageDraw.Draw(picture)
    draw.text((x - left, y - top), letter, font=face, fill=ink, stroke_width=2, stroke_fill=outline)
    return box


def _judge_glyphs(results: Iterable[tuple[list[np.ndarray], list[Box]]]) -> Verdict:
    ranked, truth = list[Found](), 0
    for outputs, boxes in results:
        predicted = suppress(*_yolox(outputs[0][0]), least=0.1, overlap=0.45)
        ranked += zip((p.score for p in predicted), matches([p.box for p in predicted], boxes), strict=True)
        truth += len(boxes)
    return Verdict(average_precision(ranked, truth), {"found": len(ranked), "truth": truth})


def _yolox(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [3549, 4] and scores [3549] of YOLOX's raw head (Ge et al. 2021): grid offsets, logs of sizes."""
    grids, strides = [], []
    for stride in (8, 16, 32):
        side = 416 // stride
        x, y = np.meshgrid(np.arange(side), np.arange(side))
        grids.append(np.stack((x, y), 2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    grid, step = np.concatenate(grids), np.concatenate(strides)
    centre, size = (raw[:, :2] + grid) * step, np.exp(raw[:, 2:4]) * step
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1), raw[:, 4] * raw[:, 5]


TASKS = {
    "ddddocr-rec": _captcha_task("CHARSET_BETA"),
    "ddddocr-rec-int8": _captcha_task("CHARSET_OLD"),
    "ddddocr-det": Samples("AP of glyphs at IoU .5", 60, _glyphs, _judge_glyphs),
}
