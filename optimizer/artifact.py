"""The output folder: made beside its final place and renamed, so that nothing is ever half-made.

A failure, Ctrl-C or SIGTERM leaves no trace, and an artifact that was there before stays as it was. Only a folder that
holds an artifact of ours, or nothing, is ever replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimizer.errors import UserError

MANIFEST = "manifest.json"
MODEL = "model.onnx"
STATISTICS = "statistics.npz"
TOOL = "onnx-optimize"
SCHEMA = 1
CHUNK = 1 << 22


def destination(model: Path | None, target: str, out: Path | str | None) -> Path:
    """Where the artifact goes: `out`, or `<stem>.<target>` in the current folder.

    Where that is the model's own name (`net.onnx` for target `onnx`) it is `<stem>.optimized`. Raises UserError where
    it may not be written.
    """
    stem = "model" if model is None else model.stem
    taken = model is not None and model.name == f"{stem}.{target}"
    folder = Path(out) if out is not None else Path(f"{stem}.optimized" if taken else f"{stem}.{target}")
    _check_replaceable(folder)
    if model is not None and folder.is_dir() and model.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"the model lies inside the output folder '{folder}': choose another with -o")
    return folder


def _check_replaceable(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"'{folder}' is a file, but the output is a folder: choose another name with -o")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise UserError(f"'{folder}' holds files that are no artifact of ours: remove it, or choose another with -o")


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / MANIFEST).read_text())["tool"]["name"] == TOOL  # type: ignore[no-any-return]  # JSON
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`; it takes its place if the block ends well, and vanishes if not.

    Raises UserError where the place cannot be written.
    """
    parent = _nearest(folder.absolute().parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    except OSError as error:
        raise UserError(f"cannot write in '{parent}': {error.strerror}; choose another folder with -o") from error
    try:
        yield temporary
        _replace(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(_old(temporary), ignore_errors=True)


def _nearest(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _replace(folder: Path, temporary: Path) -> None:
    _check_replaceable(folder)
    old = _old(temporary)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o777 & ~_umask())
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise UserError(f"cannot write '{folder}': {error.strerror}; choose another folder with -o") from error


def _old(temporary: Path) -> Path:
    return Path(f"{temporary}.old")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """Digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """Name, size and digest of a file, as the manifest lists it."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json: keys in the order of docs/manifest.md, no NaN or infinity."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n")
