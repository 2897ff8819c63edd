"""File types: files of this machine, the truth read off their endings.

The sample follows this machine's files: the same files give the same sample, other files a like one.
"""

import functools
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from models.tasks.base import Feeds, Samples, Split, Verdict
from models.zoo import folder

PER_ENDING = 40
HALF = 1024  # bytes taken from each end
BLOCK = 4096
NONE = 256
BATCH = 64
TYPES = {
    "python": "py",
    "pythonbytecode": "pyc",
    "javascript": "js",
    "json": "json",
    "html": "html",
    "css": "css",
    "c": "c",
    "png": "png",
    "gif": "gif",
    "jpeg": "jpg",
    "svg": "svg",
    "shell": "sh",
    "perl": "pl pm",
    "gzip": "gz",
    "zip": "zip whl",
    "ttf": "ttf",
    "pdf": "pdf",
    "markdown": "md",
    "rst": "rst",
    "yaml": "yaml yml",
    "toml": "toml",
    "typescript": "ts",
    "wav": "wav",
    "java": "java",
    "go": "go",
    "rust": "rs",
    "npz": "npz",
    "npy": "npy",
    "deb": "deb",
    "csv": "csv",
    "ini": "ini",
    "tcl": "tcl",
    "lua": "lua",
    "ruby": "rb",
    "php": "php",
    "woff": "woff",
    "woff2": "woff2",
    "wasm": "wasm",
    "bmp": "bmp",
    "ico": "ico",
    "xz": "xz",
    "bzip": "bz2",
    "bib": "bib",
    "m4": "m4",
    "cmake": "cmake",
    "h5": "h5",
    "diff": "diff patch",
    "awk": "awk",
    "onnx": "onnx",
    "cpp": "cpp cc",
    "fortran": "f90",
    "sql": "sql",
    "po": "po",
    "batch": "cmd bat",
    "vue": "vue",
    "proto": "proto",
    "tiff": "tiff tif",
    "postscript": "ps",
    "latex": "tex",
    "asm": "asm",
}
LABEL_OF = {ending: label for label, endings in TYPES.items() for ending in endings.split()}


@functools.cache
def _labels() -> list[str]:
    (file,) = folder("magika-labels").iterdir()
    labels: list[str] = json.loads(file.read_text())["target_labels_space"]
    return labels


@functools.cache
def _files() -> dict[str, list[str]]:
    """Paths of this machine's files by ending, each list in a seeded order."""
    found: dict[str, set[str]] = {}
    for root in ("/usr", sys.prefix, sys.base_prefix, "/etc"):
        for place, _, names in os.walk(root):
            for name in names:
                ending = name.rpartition(".")[2].lower() if "." in name else ""
                path = f"{place}/{name}"
                if LABEL_OF.get(ending) in _labels() and not os.path.islink(path):
                    found.setdefault(ending, set()).add(path)
    pick, ordered = random.Random(100), dict[str, list[str]]()
    for ending in sorted(found):
        ordered[ending] = sorted(found[ending])
        pick.shuffle(ordered[ending])
    return ordered


def _readable(paths: Iterable[str]) -> Iterator[np.ndarray]:
    """The model's view of each file of at least 200 bytes that can be read: int32 [2048]."""
    for path in paths:
        try:
            size = Path(path).stat().st_size
            if size < 200:
                continue
            with open(path, "rb") as file:
                head = file.read(BLOCK)
                file.seek(max(0, size - BLOCK))
                tail = file.read(BLOCK)
        except OSError:
            continue
        first = list((head.strip() if size <= BLOCK else head.lstrip())[:HALF])
        last = list((tail.strip() if size <= BLOCK else tail.rstrip())[-HALF:])
        padding = [[NONE] * (HALF - len(part)) for part in (first, last)]
        yield np.array(first + padding[0] + padding[1] + last, np.int32)


def _sample(split: Split) -> Iterator[tuple[np.ndarray, int]]:
    """Up to forty files of each ending to evaluate, the next forty to calibrate, ending after ending in turn."""
    first = 0 if split == "evaluation" else PER_ENDING
    rows: list[tuple[int, str, np.ndarray]] = []
    for ending, paths in _files().items():
        for place, content in enumerate(_readable(paths)):
            if place >= first + PER_ENDING:
                break
            if place >= first:
                rows.append((place, ending, content))
    for _, ending, content in sorted(rows, key=lambda row: row[:2]):
        yield content, _labels().index(LABEL_OF[ending])


def _batches(split: Split) -> Iterator[tuple[Feeds, np.ndarray]]:
    """Batches of 64 to evaluate, single files to calibrate."""
    sample, size = list(_sample(split)), BATCH if split == "evaluation" else 1
    for start in range(0, len(sample), size):
        contents, labels = zip(*sample[start : start + size], strict=True)
        yield {"bytes": np.stack(contents)}, np.array(labels)


def _judge(results: Iterable[tuple[list[np.ndarray], np.ndarray]]) -> Verdict:
    right, classes = list[bool](), list[int]()
    for outputs, labels in results:
        right += (outputs[0].argmax(1) == labels).tolist()
        classes += labels.tolist()
    found, known = np.array(right), np.array(classes)
    each = [float(found[known == label].mean()) for label in np.unique(known)]
    details = {
        "files": len(found),
        "classes": len(each),
        "mean over classes": float(np.mean(each)),
    }
    return Verdict(float(found.mean()), details)


TASKS = {"magika": Samples("top-1 of file types", 1000, _batches, _judge)}
