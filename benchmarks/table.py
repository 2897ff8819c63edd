"""Rows of a benchmark's parts in one JSON file, so that parts can be run piecewise, and tables of them in Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar


class Keyed(Protocol):
    """A dataclass of what a part finds; the row of a later run takes the place of the one with the same key."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    part: ClassVar[str]

    @property
    def key(self) -> tuple[object, ...]: ...


Row = TypeVar("Row", bound=Keyed)
Kinds = Mapping[str, Callable[..., Row]]  # what makes the rows of a part
Rows = dict[tuple[object, ...], Row]  # by part and key


def read(files: Iterable[Path], kinds: Kinds[Row]) -> Rows[Row]:
    found: Rows[Row] = {}
    for file in files:
        made = [kinds[part](**row) for part, rows in json.loads(file.read_text()).items() for row in rows]
        found |= {(row.part, *row.key): row for row in made}
    return found


def keep(fresh: Iterable[Row], rows: Rows[Row], file: Path | None, kinds: Kinds[Row]) -> None:
    """Prints each row when it is there and writes all of them, so that an interruption loses none."""
    for row in fresh:
        rows[(row.part, *row.key)] = row
        print(row.part, json.dumps(asdict(row)), flush=True)
        write(rows, file, kinds)


def write(rows: Rows[Row], file: Path | None, kinds: Kinds[Row]) -> None:
    if file is not None:
        grouped = {part: [asdict(row) for row in rows.values() if row.part == part] for part in kinds}
        file.write_text(json.dumps(grouped, indent=1) + "\n")


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are text; '' without cells."""
    if not cells:
        return ""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * left + "---:|" * (len(titles) - left)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)]) + "\n"
