"""The task of each model, by the model's name; pictures, sound and text are imported only when asked for."""

import importlib

from models.fetch import ZooError
from models.registry import MODELS
from models.tasks.base import Task

_MODULES = {
    "fashion": "fashion",
    "magika": "files",
    "minilm-l3": "language",
    "silero-vad": "speech",
    "silero-vad-ifless": "speech",
    "silero-vad-openvino": "speech",
    "silero-vad-sequence": "speech",
    "ppocr-det": "reading",
    "ppocr-rec": "reading",
    "ppocr-cls": "reading",
    "ddddocr-det": "glyphs",
    "ddddocr-rec": "glyphs",
    "ddddocr-rec-int8": "glyphs",
}


def task(name: str) -> Task:
    """The task of one model. Raises ZooError for an unknown name or a library that is not installed."""
    if name not in MODELS:
        raise ZooError(f"the zoo has no '{name}'; it has {', '.join(sorted(MODELS))}")
    try:
        module = importlib.import_module(f"models.tasks.{_MODULES.get(name, 'vision')}")
    except ModuleNotFoundError as missing:
        raise ZooError(f"the task of '{name}' needs {missing.name}: pip install {missing.name}") from missing
    found: Task = module.TASKS[name]
    return found
