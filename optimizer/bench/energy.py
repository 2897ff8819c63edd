"""Energy, where the machine counts it and lets us read: RAPL's counters of the processor packages, by Linux' powercap.

What is counted is all that the package did meanwhile, other processes included.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """`joules` counts up from when the block was entered; None where there is nothing to read."""

    def __init__(self, folder: Path = POWERCAP):
        self._zones = _zones(folder)
        self._turns = [0] * len(self._zones)
        self._last = [0] * len(self._zones)

    def __enter__(self) -> Meter:
        self._last = [_microjoules(zone) or 0 for zone in self._zones]
        self._start = list(self._last)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def joules(self) -> float | None:
        """Since the block was entered; a counter that starts over at its end is followed."""
        if not self._zones:
            return None
        total = 0
        for place, zone in enumerate(self._zones):
            now = _microjoules(zone)
            if now is None:
                return None
            if now < self._last[place]:
                self._turns[place] += 1
            self._last[place] = now
            total += now - self._start[place] + self._turns[place] * _range(zone)
        return total / 1e6


def _zones(folder: Path) -> Sequence[Path]:
    """Packages, not their parts: `intel-rapl:0`, but not `intel-rapl:0:1`; also so named on AMD."""
    found = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
    return [zone for zone in found if zone.name.count(":") == 1 and _microjoules(zone) is not None]


def _microjoules(zone: Path) -> int | None:
    try:
        return int((zone / "energy_uj").read_text())
    except (OSError, ValueError):
        return None


def _range(zone: Path) -> int:
    try:
        return int((zone / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
        return 0
