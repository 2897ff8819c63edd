"""Pictures made on the spot, with the truth about them known: lines and pages of text, captchas, scenes.

Everything is drawn from a seeded `Chance`, so a task's samples are the same on every machine.
"""

import functools
import gzip
import random
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from models.zoo import folder

Picture = Image.Image
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom
BEGINNINGS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "hubble_deep_field", "retina")
TEXTURES = ("grass.png", "gravel.png", "brick.png")
EMOJI = [
    *range(0x1F400, 0x1F43F),
    *range(0x1F345, 0x1F37F),
    *range(0x1F680, 0x1F6A4),
    *range(0x1F3B8, 0x1F3C0),
]


class Chance:
    """Seeded choices (`pick`) and seeded noise."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.generator = np.random.default_rng(seed)

    def colour(self, low: int, high: int) -> Colour:
        return (self.pick.randint(low, high), self.pick.randint(low, high), self.pick.randint(low, high))

    def noisy(self, picture: Picture, deviation: float) -> Picture:
        pixels = np.asarray(picture, np.float32)
        changed = pixels + self.generator.normal(0, deviation, pixels.shape)
        return Image.fromarray(np.clip(changed, 0, 255).astype(np.uint8))


@functools.cache
def photos() -> list[Picture]:
    """Eleven photographs, RGB, of various sizes."""
    place = folder("photos")
    names = [next(place.glob(f"{beginning}.*")) for beginning in (*BEGINNINGS, "ihc", "color")]
    names += sorted(folder("more-photos").iterdir())
    return [Image.open(name).convert("RGB") for name in names]


@functools.cache
def imagenet_samples() -> list[tuple[Picture, int]]:
    """Twenty ImageNet pictures with their class, 0 to 999."""
    files = sorted(folder("imagenet-samples").iterdir())
    return [(Image.open(file).convert("RGB"), int(file.stem.rpartition("_")[2])) for file in files]


@functools.cache
def words() -> list[str]:
    """English words in the order in which telephone prompts speak them, with their repetitions."""
    (file,) = folder("speech-text").iterdir()
    with gzip.open(file, "rt", errors="replace") as text:
        return re.findall(r"[A-Za-z]{2,12}", text.read())


@functools.cache
def fonts() -> list[str]:
    files: list[Path] = [*folder("fonts").iterdir(), *folder("more-fonts").iterdir()]
    return [str(file) for file in sorted(files, key=lambda file: file.name)]


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(name, size)


def text_line(text: str, face: ImageFont.FreeTypeFont, ink: Colour, paper: Colour, margin: int = 6) -> Picture:
    left, top, right, bottom = face.getbbox(text)
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    picture = Image.new("RGB", size, paper)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, font=face, fill=ink)
    return picture


def page(chance: Chance, size: int, lines: int) -> tuple[Picture, list[Box]]:
    """A square page of faint, blurred, noisy text and the box of each line."""
    pick = chance.pick
    paper = chance.colour(150, 255)
    picture, boxes, y = Image.new("RGB", (size, size), paper), list[Box](), pick.randint(10, 30)
    for _ in range(lines):
        red, green, blue = (max(0, value - pick.randint(45, 120)) for value in paper)
        text = " ".join(pick.choice(words()) for _ in range(pick.randint(1, 5)))
        line = text_line(text, font(pick.choice(fonts()), pick.randint(9, 26)), (red, green, blue), paper, 0)
        if line.width > size - 20:
            continue
        if y + line.height > size - 10:
            break
        x = pick.randint(5, size - 10 - line.width)
        picture.paste(line, (x, y))
        boxes.append((x, y, x + line.width, y + line.height))
        y += line.height + pick.randint(14, 40)
    picture = picture.filter(ImageFilter.GaussianBlur(pick.uniform(0, 1.2)))
    return chance.noisy(picture, pick.uniform(5, 22)), boxes


def scene(chance: Chance, size: int, smallest: float, largest: float) -> tuple[Picture, np.ndarray]:
    """An emoji on a tinted texture, and its mask, bool [size, size]; its side is a share of the picture's."""
    pick = chance.pick
    grey = Image.open(folder("photos") / pick.choice(TEXTURES)).convert("L").resize((size, size))
    tints = [pick.uniform(0.5, 1) for _ in range(3)]
    pixels = np.asarray(grey, np.float64)
    picture = Image.fromarray(np.stack([(pixels * tint).astype(np.uint8) for tint in tints], axis=2))
    thing = _emoji(chance, int(size * pick.uniform(smallest, largest)))
    x, y = pick.randint(0, size - thing.width), pick.randint(0, size - thing.height)
    picture.paste(thing, (x, y), thing)
    mask = np.zeros((size, size), bool)
    mask[y : y + thing.height, x : x + thing.width] = np.asarray(thing)[:, :, 3] > 127
    return picture, mask


def _emoji(chance: Chance, side: int) -> Picture:
    (file,) = folder("emoji").iterdir()
    face = font(str(file), 109)  # the one size that this bitmap font has
    while True:
        picture = Image.new("RGBA", (136, 136), (0, 0, 0, 0))
        draw = ImageDraw.Draw(picture)
        draw.text((0, 4), chr(chance.pick.choice(EMOJI)), font=face, embedded_color=True)
        if box := picture.getbbox():
            return picture.crop(box).resize((side, side), Image.Resampling.BICUBIC)


def captcha(chance: Chance) -> tuple[Picture, str]:
    """Four to six turned letters or digits of many fonts under two lines and noise; 64 pixels high."""
    pick = chance.pick
    text = "".join(pick.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(pick.randint(4, 6)))
    picture, x = Image.new("RGB", (40 + 28 * len(text), 64), chance.colour(200, 255)), 12
    for letter in text:
        face = font(pick.choice(fonts()), pick.randint(30, 40))
        glyph = Image.new("RGBA", (50, 60), (0, 0, 0, 0))
        ImageDraw.Draw(glyph).text((8, 4), letter, font=face, fill=(*chance.colour(0, 120), 255))
        glyph = glyph.rotate(pick.uniform(-18, 18), Image.Resampling.BILINEAR)
        picture.paste(glyph, (x, pick.randint(-2, 8)), glyph)
        x += 28
    draw = ImageDraw.Draw(picture)
    for _ in range(2):
        ends = [(pick.randint(0, picture.width), pick.randint(0, 64)) for _ in range(2)]
        draw.line(ends, fill=chance.colour(60, 160), width=1)
    return chance.noisy(picture, 8), text
