"""Feeds from files of arrays and from Python functions."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from optimizer.data import Input, check_kind, check_names
from optimizer.errors import DataError
from optimizer.evaluate import Feeds
from optimizer.functions import load_function

MOST = 1_000_000  # feeds: a function that yields more is taken for one that never ends
UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Arrays:
    """One feed per file: `.npz` maps input names to arrays; `.npy` is the array of the model's only input."""

    name: str
    files: tuple[Path, ...]
    inputs: tuple[str, ...]

    def glance(self, inputs: Mapping[str, Input]) -> None:
        """Reads the header of every array of every file: names, dtypes and shapes, no values."""
        if self.files[0].suffix == ".npy" and len([i for i in inputs.values() if not i.optional]) != 1:
            takes = ", ".join(f"'{n}'" for n in self.inputs)
            raise DataError(f"'{self.files[0]}' holds one array, but the model takes {takes}: save .npz files instead")
        for path in self.files:
            if path.suffix.lower() != ".npz":
                continue
            headers = _headers(path)
            check_names(f"'{path}'", headers, inputs)
            for name, (shape, dtype) in headers.items():
                check_kind(f"'{path}'", inputs[name], dtype, shape)

    def read(self, places: Collection[int] | None) -> Iterator[tuple[str, Feeds]]:
        for place in range(len(self.files)) if places is None else places:
            path = self.files[place]
            try:
                loaded = np.load(path, allow_pickle=False)
                feed = {n: loaded[n] for n in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else None
            except UNREADABLE as error:
                raise _unreadable(path, error) from error
            yield f"'{path}'", {self.inputs[0]: loaded} if feed is None else feed


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as f:
                    version = npy.read_magic(f)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(f)
                found[member.removesuffix(".npy")] = shape, dtype
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return found


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "pickle" in reason:
        reason = "it holds Python objects"
    return DataError(f"'{path}' cannot be read as arrays ({reason}): save it again with numpy.savez")


@dataclass(frozen=True)
class Calls:
    """Feeds from a function that returns an iterable of dicts; it is called anew for each reading."""

    name: str
    call: Callable[[], Iterable[Any]]

    @staticmethod
    def load(spec: str) -> Calls:
        return Calls(spec, load_function(spec, "--data"))

    @staticmethod
    def of(given: Sequence[Feeds] | Callable[[], Iterable[Feeds]]) -> Calls:
        """A function or a list that came through the Python API."""
        if callable(given):
            return Calls(getattr(given, "__name__", "function"), given)
        if isinstance(given, Iterator):
            raise DataError(
                "data is an iterator, which can be read only once: pass a list, or a function that makes it"
            )
        return Calls("feeds", lambda: given)

    def glance(self, inputs: Mapping[str, Input]) -> None:
        pass

    def read(self, places: Collection[int] | None) -> Iterator[tuple[str, Feeds]]:
        wanted = None if places is None else set(places)
        last = None if wanted is None else max(wanted, default=-1)
        try:
            made = iter(self.call())
        except Exception as error:  # whatever the user's function raises
            raise self._failed(error) from error
        place = -1
        while last is None or place < last:
            try:
                feed = next(made)
            except StopIteration:
                return
            except Exception as error:  # as above
                raise self._failed(error) from error
            place += 1
            if place >= MOST:
                raise DataError(f"--data '{self.name}' yields more than {MOST} feeds: make it end")
            if wanted is None or place in wanted:
                yield f"feed {place} of '{self.name}'", feed

    def _failed(self, error: Exception) -> DataError:
        return DataError(f"--data '{self.name}' failed: {type(error).__name__}: {error}")
