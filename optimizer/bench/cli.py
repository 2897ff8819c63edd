"""What `optimize bench` does with its options: texts read, the bench run, reports written, an exit code."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import GateError, UnavailableError, UserError

INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """As `bench` takes them."""

    model: Path
    targets: Sequence[str]
    also: Mapping[str, str]
    data: str | None
    preprocess: str | None
    metric: str | None
    max_drop: float
    min_sqnr: float | None
    min_agreement: float | None
    threads: int
    batches: Sequence[int]
    callers: Sequence[int]
    seconds: float
    launches: int
    limit: float
    baseline: str
    artifacts: Path | None
    profile: bool
    seed: int


def bench(options: Options, html: Path | None, markdown: Path | None, as_json: bool, quiet: bool) -> int:
    """Runs and reports; the exit code. Raises UserError for files that cannot be written, before anything is run."""
    from optimizer.bench import run
    from optimizer.bench.page import page
    from optimizer.bench.summary import markdown as as_markdown
    from optimizer.bench.table import table
    from optimizer.progress import Bar
    from optimizer.report import show

    for file in (html, markdown):
        _check_writable(file)
    command = shlex.join(["optimize", *sys.argv[1:]]) if sys.argv[1:2] == ["bench"] else ""
    with Bar(not quiet) as bar:
        found = run.bench(**asdict(options), command=command, progress=bar)
    if html is not None:
        html.write_text(page(found.facts), "utf-8")
    if markdown is not None:
        markdown.write_text(as_markdown(found.facts), "utf-8")
    if as_json:
        sys.stdout.write(json.dumps(found.facts, indent=1, allow_nan=False) + "\n")
    elif not quiet:
        show(*table(found.facts))
    if found.facts["interrupted"]:
        return INTERRUPTED
    return 0 if found.ran else UnavailableError.exit_code


def show_again(files: Sequence[Path], html: Path | None, markdown: Path | None, quiet: bool) -> int:
    """Reports of results that --json printed, of one model or several. Raises UserError."""
    from optimizer.bench import summary
    from optimizer.bench.overview import overview
    from optimizer.bench.page import page
    from optimizer.bench.table import side_by_side, table
    from optimizer.report import show

    for file in (html, markdown):
        _check_writable(file)
    results = [_read(file, "--show") for file in files]
    if html is not None:
        html.write_text(page(*results), "utf-8")
    if markdown is not None:
        found = overview(results)
        lines = [found.headline, "", *summary.grid(found.columns, found.rows)]
        text = "\n".join(lines) + "\n" if len(results) > 1 else summary.markdown(results[0])
        markdown.write_text(text, "utf-8")
    if not quiet:
        show(*(side_by_side(results) if len(results) > 1 else table(results[0])))
    return 0


def compare(old: Path, new: Path, most: float, as_json: bool, quiet: bool) -> int:
    """Says what became slower; exit code 4 where that is more than `most`. Raises UserError."""
    from optimizer.bench.compare import compare as against
    from optimizer.bench.table import changes
    from optimizer.report import show

    if not most >= 0:
        raise UserError(f"--max-regression {most:g}: give a share of 0 or more, such as 0.05")
    found = against(_read(old, "--compare"), _read(new, "--compare"), most)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, allow_nan=False) + "\n")
    elif not quiet:
        show(*changes(found))
    return GateError.exit_code if found["regressions"] else 0


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise UserError(f"{option} {text}: give whole numbers, such as 1,8,32") from None


def files(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise UserError(f"--also {text} is not NAME=FILE, such as quantizer=model_int8.onnx")
        found[name] = file
    return found


def _check_writable(file: Path | None) -> None:
    if file is None:
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"cannot write '{file}': it is a folder, or lies in one that does not exist")


def _read(file: Path, option: str) -> dict[str, Any]:
    """A result of `optimize bench --json`."""
    from optimizer.bench.results import FORMAT, SCHEMA

    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{option}: cannot read '{file}': {error.strerror}") from None
    except ValueError:
        raise UserError(f"{option}: '{file}' is no JSON: give what 'optimize bench --json' printed") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f"{option}: '{file}' is no result of 'optimize bench --json'")
    if found.get("format") != FORMAT:
        raise UserError(
            f"{option}: '{file}' has format {found.get('format')}, this version reads {FORMAT}: bench again"
        )
    return found
