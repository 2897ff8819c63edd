"""What calibration learns: a histogram per tensor, channel means of some, an artifact independent of any target.

It is saved beside the model and can be reloaded; int8 is rendered from it for a target, as often as needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import DataError, ModelError
from optimizer.histogram import BINS, METHODS, PERCENTILE, Histogram, Method

__all__ = ["BINS", "METHODS", "PERCENTILE", "Digest", "Histogram", "Method", "Statistics"]
FORMAT = 2


class Statistics(Mapping[str, Histogram]):
    """Histograms by tensor name, and `data`: the SHA-256 of the batches they were made from ('' before any)."""

    def __init__(self, data: str = "", batches: int = 0):
        self.data = data
        self.batches = batches
        self._histograms: dict[str, Histogram] = {}
        self._means: dict[str, tuple[NDArray[Any], int]] = {}

    def __getitem__(self, name: str) -> Histogram:
        return self._histograms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._histograms)

    def __len__(self) -> int:
        return len(self._histograms)

    def clear(self) -> None:
        """Forgets everything."""
        self._histograms.clear()
        self._means.clear()
        self.data, self.batches = "", 0

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Takes one array of tensor `name` into account."""
        self._histograms.setdefault(name, Histogram()).add(values)

    def take(self, name: str, sample: NDArray[Any], size: int, low: float, high: float) -> None:
        """Takes one array of tensor `name` into account by a sample of it; see `Histogram.take`."""
        self._histograms.setdefault(name, Histogram()).take(sample, size, low, high)

    def add_mean(self, name: str, values: NDArray[Any]) -> None:
        """Takes the channel means [C] of one batch of tensor `name` into account; batches weigh the same."""
        total, batches = self._means.get(name, (np.zeros(values.shape), 0))
        self._means[name] = (total + values, batches + 1)

    def mean(self, name: str) -> NDArray[Any] | None:
        """The mean of each channel (axis 1) of a tensor, float64 [C]; None where it was not asked for."""
        if name not in self._means:
            return None
        total, batches = self._means[name]
        return total / batches

    def range(self, name: str, method: str = "minmax", percentile: float = PERCENTILE) -> tuple[float, float]:
        """(low, high) of a tensor, 0 included. Raises ModelError where it was not seen, DataError where not finite."""
        if name not in self._histograms:
            raise ModelError(f"no range for '{name}': it appeared after 'calibrate' ran; put 'calibrate,quantize' last")
        if not self._histograms[name].finite:
            raise DataError(f"tensor '{name}' holds NaN or infinity on the calibration data; leave its reader in float")
        return self._histograms[name].range(method, percentile)

    def save(self, path: Path) -> None:
        """Writes an npz whose bytes depend on the contents alone."""
        names = sorted(self._histograms)
        every = [self._histograms[n] for n in names]
        means = [(n, len(total), batches) for n, (total, batches) in sorted(self._means.items())]
        about = {"format": FORMAT, "data": self.data, "batches": self.batches, "names": names, "means": means}
        arrays: dict[str, NDArray[Any]] = {
            "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8),
            "counts": np.array([h.counts for h in every], np.int64).reshape(-1, BINS),
            "ends": np.array([[h.limit, h.low, h.high] for h in every], np.float64).reshape(-1, 3),
            "means": np.concatenate([np.zeros(0), *(self._means[n][0] for n, _, _ in means)]),
            "sizes": np.array([[h.zeros, h.size, h.batches, h.finite] for h in every], np.int64).reshape(-1, 4),
        }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, array, allow_pickle=False)
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Reads what `save` wrote. Raises DataError where the file is something else."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                about = json.loads(archive["about"].tobytes())
                counts, ends, sizes, means = (archive[n] for n in ("counts", "ends", "sizes", "means"))
            if about["format"] != FORMAT or counts.shape != (len(about["names"]), BINS):
                raise ValueError(f"format {about['format']}, {counts.shape[-1]} bins")
            made = cls(about["data"], about["batches"])
            for name, bins, end, size in zip(about["names"], counts, ends.tolist(), sizes.tolist(), strict=True):
                limit, low, high = end
                made._histograms[name] = Histogram(bins, limit, low, high, *size)
                made._histograms[name].finite = bool(size[3])
            start = 0
            for name, length, batches in about["means"]:
                made._means[name] = (means[start : start + length], batches)
                start += length
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"'{path}' is not a statistics file of this version: {error}") from error
        return made


class Digest:
    """SHA-256 over batches: names, dtypes, shapes and bytes, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        for name in sorted(feeds):
            array = np.ascontiguousarray(feeds[name])
            self._hash.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            self._hash.update(array.tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
