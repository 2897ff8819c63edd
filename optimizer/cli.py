"""The command line: argv in, one call, an exit code out. stdout is for results, everything else goes to stderr.

Nothing heavy is imported before it is needed, so that --help answers at once.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError, MissingArgumentError, UnusedCliTokensError

from optimizer import __version__
from optimizer.errors import BugError, GateError, OptimizeError, UserError

if TYPE_CHECKING:
    from optimizer.engine import EngineOptions

ABOUT = "Makes an ONNX model fast on a named target, and proves by measurement that it is no worse."
EXAMPLES = """Examples:
  optimize model.onnx --target ort-int8 --data 'calib/*.npz'
  optimize model.onnx --target ort-int8 --data photos/ --preprocess imagenet
  optimize model.onnx -t ort-int8 --data 'calib/*.npz' --metric task.py:top1
  optimize model.onnx --target trt-int8 --data 'calib/*.npz' --gpu sm_89
  optimize model.onnx --target onnx --out simplified
  optimize model.onnx -t ort-int8 --data 'calib/*.npz' --prune 0.3
  optimize prune-curve model.onnx --ratios 0.1,0.2,0.3 --data 'calib/*.npz' --metric task.py:top1
  optimize bench model.onnx --targets ort-int8,openvino-int8 --data 'calib/*.npz' --html report.html
  optimize profile model.onnx --target ort-int8 --data 'calib/*.npz'
  optimize inspect model.onnx
  optimize explain model.onnx
  optimize explain model.onnx --pruning
  optimize bisect model.onnx --passes 'fixpoint(cleanup,fold,fuse)' --data 'calib/*.npz'
  optimize lint model.onnx --target trt

Exit codes: 0 done, 1 a bug of ours, 2 wrong input,
  3 the target's runtime is not here, 4 a limit was missed under --strict,
  the promised precision was not built, the linter found something,
  bench --compare found a regression, or bisect a rewrite to blame."""

app = App(
    name="optimize",
    help=ABOUT,
    help_epilogue=EXAMPLES,
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)

ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
COMMANDS = ("bench", "bisect", "explain", "inspect", "lint", "passes", "profile", "prune-curve", "targets")
DATA = Group("Data", sort_key=2)
LIMITS = Group("Limits", sort_key=3)
TALK = Group("Output", sort_key=4)
ENGINE = Group("Engines (targets trt-*)", sort_key=5)
CLOCK = Group("Measuring", sort_key=5)
AGAIN = Group("Comparing two results", sort_key=6)
EXPERT = Group("For experts", sort_key=6)


@app.default
def optimize(
    model: Path,
    /,
    *,
    target: Annotated[str, Parameter(name=["--target", "-t"])],
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], show_default=False)] = None,
    opset: Annotated[int | None, Parameter(show_default=False)] = None,
    prune: Annotated[str | None, Parameter(show_default=False)] = None,
    data: Annotated[str | None, Parameter(group=DATA, show_default=False)] = None,
    preprocess: Annotated[str | None, Parameter(group=DATA, show_default=False)] = None,
    statistics: Annotated[Path | None, Parameter(group=DATA, show_default=False)] = None,
    freeze: Annotated[list[str] | None, Parameter(group=DATA, show_default=False, negative=())] = None,
    fix: Annotated[list[str] | None, Parameter(show=False, negative=())] = None,
    shape: Annotated[list[str] | None, Parameter(group=DATA, show_default=False, negative=())] = None,
    metric: Annotated[str | None, Parameter(group=LIMITS, show_default=False)] = None,
    max_drop: Annotated[float, Parameter(group=LIMITS)] = 0.01,
    min_sqnr: Annotated[float | None, Parameter(group=LIMITS, show_default=False)] = None,
    min_agreement: Annotated[float | None, Parameter(group=LIMITS, show_default=False)] = None,
    strict: Annotated[bool, Parameter(group=LIMITS, negative=())] = False,
    threads: int = 0,
    seed: int = 0,
    gpu: Annotated[str | None, Parameter(group=ENGINE, show_default=False)] = None,
    min_int8: Annotated[float, Parameter(group=ENGINE)] = 0.9,
    emit: Annotated[Literal["engine", "onnx"], Parameter(group=ENGINE)] = "engine",
    workspace: Annotated[float | None, Parameter(group=ENGINE, show_default=False)] = None,
    level: Annotated[int | None, Parameter(group=ENGINE, show_default=False)] = None,
    timing_cache: Annotated[Path | None, Parameter(group=ENGINE, show_default=False)] = None,
    strip_weights: Annotated[bool, Parameter(group=ENGINE, negative=())] = False,
    refit: Annotated[bool, Parameter(group=ENGINE, negative=())] = False,
    version_compatible: Annotated[bool, Parameter(group=ENGINE, negative=())] = False,
    plugin: Annotated[list[Path] | None, Parameter(group=ENGINE, show_default=False, negative=())] = None,
    scheme: Annotated[str | None, Parameter(group=EXPERT, show_default=False)] = None,
    passes: Annotated[str | None, Parameter(group=EXPERT, show_default=False)] = None,
    verify_each: Annotated[bool, Parameter(group=EXPERT, negative=())] = False,
    dump: Annotated[Path | None, Parameter(group=EXPERT, show_default=False)] = None,
    bisect_limit: Annotated[int | None, Parameter(group=EXPERT, show_default=False)] = None,
    keep_provenance: Annotated[bool, Parameter(group=EXPERT, negative=())] = False,
    json: Annotated[bool, Parameter(group=TALK, negative=())] = False,
    verbose: Annotated[int, Parameter(name=["--verbose", "-v"], count=True, group=TALK, show_default=False)] = 0,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), group=TALK)] = False,
) -> None:
    """Optimize a model.

    Parameters
    ----------
    model: Path
        The .onnx file. Write ./targets for a file that is called like a command.
    target: str
        What to optimize for: 'optimize targets' lists them.
    out: Path
        Folder to write; default <model>.<target> here (<model>.optimized for target onnx). Replaced only if it
        holds an earlier result.
    opset: int
        Raise the model to this operator set first, such as 20: newer ones have operators for what others spell out.
    prune: str
        Share of the multiply-accumulates to remove first, such as 0.3: whole channels and heads. Or with options of
        the pass: 'ratio=0.3 of=latency criterion=l2' ('optimize passes' lists them).
    data: str
        Inputs: 'dir/*.npz' (a file per feed, input name to array; quote the pattern), a folder of pictures,
        file.py:function (returns dicts), or random:N. Every fourth feed is held out for checking.
    preprocess: str
        How the model wants pictures: imagenet, or e.g. 'size=224 crop=center layout=nchw colour=rgb scale=255
        mean=0.485,0.456,0.406 std=0.229,0.224,0.225'.
    statistics: Path
        Calibration of an earlier run (its statistics.npz), used instead of calibrating again.
    freeze: list[str]
        INPUT=VALUE: an input that always has this value, such as sr=16000; branches on it go. May be repeated.
    fix: list[str]
        The older name of --freeze.
    shape: list[str]
        INPUT=SIZES: an input that always has these sizes, such as x=1x3x224x224; a name or ? keeps a dim as it is.
        Engines serve a range of sizes: INPUT=MIN:OPT:MAX, such as x=1x3x8x8:8x3x8x8:32x3x8x8. May be repeated.
    metric: str
        file.py:function; gets a callable model (dict in, dict out), returns a number, higher is better.
    max_drop: float
        How far the metric may fall below the original's.
    min_sqnr: float
        Least signal-to-noise ratio of every output, in dB; default 15 without --metric.
    min_agreement: float
        Least share of rows with the same best class; default 0.95 without --metric.
    strict: bool
        Fail (exit 4) instead of falling back to float or to the original.
    threads: int
        Threads to run and measure with; 0 means all cores.
    seed: int
        Seed of random inputs.
    gpu: str
        Compute capabilities to build for, e.g. sm_89,sm_120; default the GPU that is here, else sm_89.
    min_int8: float
        Fail (exit 4) where less of the work that could be int8 is: a share of the multiply-accumulates.
    emit: str
        onnx stops at the model that the engine is built from; needs no TensorRT.
    workspace: float
        Device memory that building may use, in GiB.
    level: int
        How hard TensorRT searches for fast kernels, 0 to 5.
    timing_cache: Path
        Folder of kernel timings; default in your cache folder.
    strip_weights: bool
        Leave weights out of the engine; refit it before use.
    refit: bool
        Allow weights to be replaced later; some fusions of int8 are lost.
    version_compatible: bool
        Build an engine that later versions of the runtime load.
    plugin: list[Path]
        A shared library with operators of your own. May be repeated.
    scheme: str
        Ship this candidate if it passes the limits, whatever its speed.
    passes: str
        A pipeline of your own: 'optimize passes' lists what it may name.
    verify_each: bool
        Check validity and outputs after every pass.
    dump: Path
        Write the model after every pass into this folder.
    bisect_limit: int
        Run only the first N passes.
    keep_provenance: bool
        Let the written model say of each node, in its metadata, which nodes it was made of and by which rules.
    json: bool
        Print the result as JSON.
    verbose: int
        Say more; twice for everything. Errors come with their traceback.
    quiet: bool
        Only errors on stderr, no table.
    """
    from optimizer import api, report
    from optimizer.progress import Bar

    with Bar(not quiet) as bar:
        result = api.optimize(
            model,
            target=target,
            data=data,
            preprocess=preprocess,
            out=out,
            opset=opset,
            prune=prune,
            passes=passes,
            scheme=scheme,
            statistics=statistics,
            metric=metric,
            max_drop=max_drop,
            min_sqnr=min_sqnr,
            min_agreement=min_agreement,
            strict=strict,
            threads=threads,
            seed=seed,
            verify_each=verify_each,
            dump=dump,
            bisect_limit=bisect_limit,
            keep_provenance=keep_provenance,
            fixed=_values([*(freeze or []), *(fix or [])]),
            shapes=_shapes([text for text in shape or [] if not _is_profile(text)]),
            engine=_engine(
                gpu,
                list(filter(_is_profile, shape or [])),
                workspace,
                level,
                timing_cache,
                strip_weights,
                refit,
                version_compatible,
                plugin or [],
            ),
            emit=emit,
            min_int8=min_int8,
            progress=bar,
        )
    if json:
        _print_json({"folder": str(result.folder), "model": str(result.model), "manifest": result.manifest})
    elif not quiet:
        report.show(report.summary(result.folder, result.manifest))


def _values(texts: list[str]) -> dict[str, float]:
    """Values by input, of `sr=16000`."""
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise UserError(f"--freeze {text} is not INPUT=VALUE, such as sr=16000")
    if len(found) < len(texts):
        raise UserError(f"--freeze is given twice for one input: {', '.join(texts)}")
    return found


def _shapes(texts: list[str]) -> dict[str, tuple[int | str | None, ...]]:
    """Dims by input, of `x=1x3x224x224`."""
    from optimizer.dims import parse_shape

    found = dict(map(parse_shape, texts)) if texts else {}
    if len(found) < len(texts):
        raise UserError(f"--shape is given twice for one input: {', '.join(texts)}")
    return found


def _is_profile(text: str) -> bool:
    """True for sizes of an engine, MIN:OPT:MAX."""
    return ":" in text.rpartition("=")[2]


def _engine(
    gpu: str | None,
    shapes: list[str],
    workspace: float | None,
    level: int | None,
    cache: Path | None,
    strip: bool,
    refit: bool,
    version_compatible: bool,
    plugins: list[Path],
) -> EngineOptions | None:
    """What the engine options say; None where none was given."""
    from optimizer.engine import EngineOptions, parse_profile

    if level is not None and not 0 <= level <= 5:
        raise UserError(f"--level {level}: TensorRT's builder optimization levels are 0 to 5")
    if workspace is not None and not 0 < workspace < 1 << 20:
        raise UserError(f"--workspace {workspace:g}: give the GiB that building may use, such as 4")
    gpus = tuple(filter(None, (gpu or "").split(",")))
    if wrong := [one for one in gpus if not re.fullmatch(r"sm_\d+", one.strip().lower())]:
        raise UserError(f"--gpu {wrong[0]}: give compute capabilities, such as sm_89,sm_120")
    size = None if workspace is None else int(workspace * (1 << 30))
    profiles = dict(map(parse_profile, shapes))
    options = EngineOptions(gpus, profiles, size, level, cache, strip, refit, version_compatible, tuple(plugins))
    return None if options == EngineOptions() else options


JSON = Annotated[bool, Parameter(negative=(), help="Print JSON.")]


@app.command
def targets(*, json: JSON = False) -> None:
    """List the targets, whether they are available here, and how to get them."""
    from optimizer import registry, report
    from optimizer import targets as table

    rows = []
    for name, target in table.targets().items():
        missing = registry.load_backend(target.backend).available()
        rows.append((name, missing, list(target.candidates), target.summary))
    if json:
        _print_json([dict(zip(("target", "missing", "schemes", "what"), row, strict=True)) for row in rows])
        return
    cells = [(name, missing or "yes", ", ".join(schemes), what) for name, missing, schemes, what in rows]
    cells.append(("auto", "yes", "", "whatever of these is available and best here, by measurement"))
    report.show(report.listing(("target", "available", "schemes", "what it gives"), cells))


@app.command
def passes(*, json: JSON = False) -> None:
    """List the passes that --passes may name, with their options."""
    from optimizer import report
    from optimizer.listing import describe_passes

    rows = describe_passes()
    if json:
        _print_json(rows)
        return
    cells = [[r["pass"], "\n".join(r["options"]) or "-", r["what"]] for r in rows]
    report.show(report.listing(("pass", "options", "what it does"), cells))


@app.command
def inspect(model: Path, /, *, json: JSON = False) -> None:
    """Show what a model is made of: operators, parameters, MACs, shapes, opset.

    Parameters
    ----------
    model: Path
        The .onnx file.
    """
    from optimizer import report
    from optimizer.inspect import inspect as look

    facts = look(model)
    if json:
        _print_json(facts)
    else:
        report.show(report.model(facts))


@app.command
def explain(
    model: Path,
    /,
    *,
    pruning: Annotated[bool, Parameter(negative=())] = False,
    target: Annotated[str, Parameter(name=["--target", "-t"])] = "onnx",
    passes: Annotated[str | None, Parameter(show_default=False)] = None,
    scheme: Annotated[str | None, Parameter(show_default=False)] = None,
    data: Annotated[str | None, Parameter(show_default=False)] = None,
    preprocess: Annotated[str | None, Parameter(show_default=False)] = None,
    node: Annotated[str | None, Parameter(show_default=False)] = None,
    json: JSON = False,
) -> None:
    """Show which rules made each node of the simplified model, of which nodes, and which rules nearly applied.

    Parameters
    ----------
    model: Path
        The .onnx file.
    pruning: bool
        Instead: the groups of channels and heads that can be removed, and the axes that cannot with the reason.
    target: str
        Explain what this target does to the float model.
    passes: str
        Explain a pipeline of your own: 'optimize passes' lists what it may name.
    scheme: str
        Explain this candidate of the target, int8 rendering included.
    data: str
        Inputs, as for optimize, for a pipeline that calibrates.
    preprocess: str
        How the model wants pictures, as for optimize.
    node: str
        One node in full, of the result or of the original, by its name or that of a tensor it makes.
    """
    from optimizer import portable, report
    from optimizer.explain import explain as look

    given = [name for name, value in (("passes", passes), ("scheme", scheme), ("node", node), ("data", data)) if value]
    if pruning and given:
        raise UserError(f"--{given[0]} and --pruning do not go together: drop one of them")
    if pruning:
        found = portable.explain(model, "pruning")
        view = report.pruning
    else:
        found = look(model, target=target, passes=passes, scheme=scheme, data=data, preprocess=preprocess, node=node)
        view = report.explanation if node is None else report.history
    if json:
        _print_json(found)
    else:
        report.show(view(found))


@app.command
def bisect(
    model: Path,
    /,
    *,
    target: Annotated[str, Parameter(name=["--target", "-t"])] = "onnx",
    passes: Annotated[str | None, Parameter(show_default=False)] = None,
    scheme: Annotated[str | None, Parameter(show_default=False)] = None,
    data: Annotated[str | None, Parameter(show_default=False)] = None,
    preprocess: Annotated[str | None, Parameter(show_default=False)] = None,
    min_sqnr: Annotated[float | None, Parameter(show_default=False)] = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], show_default=False)] = None,
    threads: int = 0,
    seed: int = 0,
    json: JSON = False,
    verbose: Annotated[int, Parameter(name=["--verbose", "-v"], count=True, show_default=False)] = 0,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> None:
    """Find the pass, and in it the rewrite, that breaks a model's outputs, and the smallest model that shows it.

    Where outputs differ beyond rounding, exits with 4 and writes model.onnx, feeds.npz and report.txt.

    Parameters
    ----------
    model: Path
        The .onnx file.
    target: str
        Run what this target does to the float model.
    passes: str
        Run a pipeline of your own: 'optimize passes' lists what it may name.
    scheme: str
        Run this candidate of the target, int8 rendering included; needs --min-sqnr.
    data: str
        Inputs, as for optimize; all of them are compared.
    preprocess: str
        How the model wants pictures, as for optimize.
    min_sqnr: float
        Outputs differ where one is below so many dB, instead of beyond rounding.
    out: Path
        Folder to write; default <model>.bisect here. Replaced only if it holds an earlier result.
    threads: int
        Threads to run with; 0 means all cores.
    seed: int
        Seed of random inputs.
    verbose: int
        Say more; twice for everything. Errors come with their traceback.
    quiet: bool
        Only errors on stderr, no report.
    """
    from optimizer import bisect as own
    from optimizer.progress import Bar

    with Bar(not quiet) as bar:
        found = own.bisect(
            model, target=target, passes=passes, scheme=scheme, data=data, preprocess=preprocess, min_sqnr=min_sqnr,
            out=out, threads=threads, seed=seed, progress=bar,
        )  # fmt: skip
    if json:
        _print_json(found.facts | {"folder": None if found.folder is None else str(found.folder)})
    elif not quiet:
        sys.stdout.write(own.report(found.facts, found.folder))
    if found.differs:
        raise SystemExit(GateError.exit_code)


@app.command(name="prune-curve")
def prune_curve(
    model: Path,
    /,
    *,
    ratios: str,
    target: Annotated[str, Parameter(name=["--target", "-t"])] = "ort-fp32",
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], show_default=False)] = None,
    data: Annotated[str | None, Parameter(show_default=False)] = None,
    preprocess: Annotated[str | None, Parameter(show_default=False)] = None,
    metric: Annotated[str | None, Parameter(show_default=False)] = None,
    prune_options: Annotated[str, Parameter(show_default=False)] = "",
    recover: Annotated[bool, Parameter(negative="--no-recover")] = True,
    threads: int = 0,
    seed: int = 0,
    json: JSON = False,
    verbose: Annotated[int, Parameter(name=["--verbose", "-v"], count=True, show_default=False)] = 0,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> None:
    """Show what pruning costs and gives at several ratios: error, metric, size, latency.

    Writes curve.json and curve.svg. Every ratio starts anew from the float model. What pruning does to int8 is another
    matter, which 'optimize MODEL --target ort-int8 --prune RATIO' judges.

    Parameters
    ----------
    model: Path
        The .onnx file.
    ratios: str
        Shares of the multiply-accumulates to remove, such as 0.1,0.2,0.3.
    target: str
        What to measure on: 'optimize targets' lists them.
    out: Path
        Folder to write; default <model>.curve here. Replaced only if it holds an earlier result.
    data: str
        Inputs, as for optimize. Every fourth feed is held out for checking.
    preprocess: str
        How the model wants pictures, as for optimize.
    metric: str
        file.py:function; gets a callable model (dict in, dict out), returns a number, higher is better.
    prune_options: str
        Options of the pass, such as 'of=params criterion=l2' ('optimize passes' lists them).
    recover: bool
        Recover from what was removed by least squares on the data.
    threads: int
        Threads to run and measure with; 0 means all cores.
    seed: int
        Seed of random inputs.
    verbose: int
        Say more; twice for everything. Errors come with their traceback.
    quiet: bool
        Only errors on stderr, no table.
    """
    from optimizer import curve, report
    from optimizer.progress import Bar

    with Bar(not quiet) as bar:
        found = curve.prune_curve(
            model,
            ratios=_ratios(ratios),
            target=target,
            data=data,
            preprocess=preprocess,
            metric=metric,
            options=" ".join(filter(None, [prune_options, "" if recover else "recover=false"])),
            out=out,
            threads=threads,
            seed=seed,
            progress=bar,
        )
    if json:
        _print_json({"folder": str(found.folder), "curve": found.facts})
    elif not quiet:
        report.show(report.curve(found.folder, found.facts))


def _ratios(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"--ratios {text}: give the shares to remove, such as 0.1,0.2,0.3") from None


@app.command
def bench(
    model: Path | None = None,
    /,
    *,
    targets: Annotated[str, Parameter(name=["--targets", "-t"], show_default=False)] = "",
    also: Annotated[list[str] | None, Parameter(show_default=False, negative=())] = None,
    data: Annotated[str | None, Parameter(group=DATA, show_default=False)] = None,
    preprocess: Annotated[str | None, Parameter(group=DATA, show_default=False)] = None,
    metric: Annotated[str | None, Parameter(group=LIMITS, show_default=False)] = None,
    max_drop: Annotated[float, Parameter(group=LIMITS)] = 0.01,
    min_sqnr: Annotated[float | None, Parameter(group=LIMITS, show_default=False)] = None,
    min_agreement: Annotated[float | None, Parameter(group=LIMITS, show_default=False)] = None,
    threads: Annotated[int, Parameter(group=CLOCK)] = 0,
    batch: Annotated[str, Parameter(group=CLOCK, show_default=False)] = "",
    concurrency: Annotated[str, Parameter(group=CLOCK)] = "1",
    seconds: Annotated[float, Parameter(group=CLOCK)] = 20.0,
    launches: Annotated[int, Parameter(group=CLOCK)] = 5,
    timeout: Annotated[float, Parameter(group=CLOCK)] = 120.0,
    baseline: Annotated[str, Parameter(group=CLOCK)] = "original",
    profile: Annotated[bool, Parameter(group=CLOCK, negative="--no-profile")] = True,
    seed: int = 0,
    artifacts: Annotated[Path | None, Parameter(show_default=False)] = None,
    html: Annotated[Path | None, Parameter(group=TALK, show_default=False)] = None,
    markdown: Annotated[Path | None, Parameter(group=TALK, show_default=False)] = None,
    json: Annotated[bool, Parameter(group=TALK, negative=())] = False,
    compare: Annotated[tuple[Path, Path] | None, Parameter(group=AGAIN, show_default=False, negative=())] = None,
    max_regression: Annotated[float, Parameter(group=AGAIN)] = 0.05,
    show: Annotated[
        list[Path] | None, Parameter(group=AGAIN, show_default=False, negative=(), consume_multiple=True)
    ] = None,
    verbose: Annotated[int, Parameter(name=["--verbose", "-v"], count=True, group=TALK, show_default=False)] = 0,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), group=TALK)] = False,
) -> None:
    """Compare backends: latency with its uncertainty, agreement with the original, memory, size.

    Every target's artifact is made where it is missing, and runs in a process of its own. Backends take turns, so that
    the machine's noise hits all alike; where the interval of a ratio holds 1 there is "no difference". Exits with 3
    where none of the backends could be run, with 4 where --compare finds a regression.

    Parameters
    ----------
    model: Path
        The .onnx file.
    targets: str
        What to compare beside the original, such as ort-fp32,ort-int8,openvino-int8; TARGET:SCHEME takes one of a
        target's candidates. 'optimize targets' lists them.
    also: list[str]
        NAME=FILE or NAME=FILE@BACKEND: a model of somebody else's, for ONNX Runtime on the CPU or, say, openvino.
        May be repeated.
    data: str
        Inputs, as for optimize. Held-out feeds are what is measured and compared on.
    preprocess: str
        How the model wants pictures, as for optimize.
    metric: str
        file.py:function; gets a callable model (dict in, dict out), returns a number, higher is better.
    max_drop: float
        How far the metric may fall below the original's before a backend is marked.
    min_sqnr: float
        Least signal-to-noise ratio of every output, in dB; default 15 without --metric.
    min_agreement: float
        Least share of rows with the same best class; default 0.95 without --metric.
    threads: int
        Threads of each backend; 0 means all cores.
    batch: str
        Batch sizes to measure, such as 1,8,32; default the feeds as they come.
    concurrency: str
        How many callers ask at once, such as 1,4.
    seconds: float
        To spend on each pair of batch and concurrency, over all backends and launches.
    launches: int
        How often every backend is started anew.
    timeout: float
        Seconds that a backend may take to answer before it is stopped.
    baseline: str
        The row that ratios are to.
    profile: bool
        Ask the runtimes which operators take the time.
    seed: int
        Seed of random inputs.
    artifacts: Path
        Where built models are kept and found again; default <model>.bench here.
    html: Path
        Write the report as one page, with pictures.
    markdown: Path
        Write the report as Markdown.
    json: bool
        Print the result as JSON (docs/bench.md).
    compare: tuple[Path, Path]
        OLD NEW: what --json printed at two times; says what became slower.
    max_regression: float
        How much slower is too slow, with --compare: a share of the old latency.
    show: list[Path]
        FILE ...: what --json printed, reported again; of several models a row each, and one page for all.
    verbose: int
        Say more; twice for everything. Errors come with their traceback.
    quiet: bool
        Only errors on stderr, no table.
    """
    from optimizer.bench import cli as own

    if compare is not None:
        raise SystemExit(own.compare(*compare, max_regression, json, quiet))
    if show:
        raise SystemExit(own.show_again(show, html, markdown, quiet))
    if model is None:
        raise UserError("the model is missing: optimize bench MODEL --targets ort-fp32,ort-int8")
    options = own.Options(
        model, own.words(targets), own.files(also or []), data, preprocess, metric, max_drop, min_sqnr, min_agreement,
        threads, own.numbers("--batch", batch), own.numbers("--concurrency", concurrency), seconds, launches, timeout,
        baseline, artifacts, profile, seed,
    )  # fmt: skip
    raise SystemExit(own.bench(options, html, markdown, json, quiet))


@app.command
def profile(
    model: Path,
    /,
    *,
    target: Annotated[str, Parameter(name=["--target", "-t"])] = "original",
    data: Annotated[str | None, Parameter(show_default=False)] = None,
    preprocess: Annotated[str | None, Parameter(show_default=False)] = None,
    threads: int = 0,
    seed: int = 0,
    artifacts: Annotated[Path | None, Parameter(show_default=False)] = None,
    top: int = 15,
    json: JSON = False,
    verbose: Annotated[int, Parameter(name=["--verbose", "-v"], count=True, show_default=False)] = 0,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> None:
    """Show where the time goes, by operator and by node, and the least that this machine needs for that work.

    Kernels are the runtime's own, fused as it fuses them. The bound is a roofline: multiply-accumulates at the best
    rate of this machine, or bytes through its memory, whichever takes longer; both are measured once and kept.

    Parameters
    ----------
    model: Path
        The .onnx file.
    target: str
        What to look at: original is the file as it is; of a target the artifact is made where it is missing.
    data: str
        Inputs, as for optimize.
    preprocess: str
        How the model wants pictures, as for optimize.
    threads: int
        Threads to run with; 0 means all cores.
    seed: int
        Seed of random inputs.
    artifacts: Path
        Where built models are kept and found again; default <model>.bench here.
    top: int
        How many nodes to show.
    verbose: int
        Say more; twice for everything. Errors come with their traceback.
    quiet: bool
        Only errors on stderr, no progress.
    """
    from optimizer import report
    from optimizer.profile import profile as look
    from optimizer.progress import Bar

    with Bar(not quiet) as bar:
        facts = look(
            model,
            target=target,
            data=data,
            preprocess=preprocess,
            threads=threads,
            seed=seed,
            artifacts=artifacts,
            progress=bar,
        )
    if json:
        _print_json(facts)
    else:
        report.show(report.profile(facts, top))


@app.command
def lint(
    model: Path,
    /,
    *,
    target: Annotated[str, Parameter(name=["--target", "-t"])],
    ignore: Annotated[list[str] | None, Parameter(show_default=False, negative=())] = None,
    json: JSON = False,
) -> None:
    """Check a quantised or mixed-precision model against what a runtime accepts and makes fast.

    Exits with 4 where there are findings.

    Parameters
    ----------
    model: Path
        The .onnx file, whoever made it.
    target: str
        trt or ort-cpu, or a target for one of them, such as trt-int8.
    ignore: list[str]
        A rule to leave out, such as trt-operator. May be repeated.
    """
    from dataclasses import asdict

    from optimizer import report
    from optimizer.io import load
    from optimizer.lint import lint as check
    from optimizer.lint import rules

    known = {rule.id for rule in rules(target)}
    if unknown := [name for name in ignore or [] if name not in known]:
        raise UserError(f"--ignore {unknown[0]}: the rules for {target} are {', '.join(sorted(known))}")
    findings = [asdict(f) for f in check(load(model), target) if f.rule not in (ignore or [])]
    if json:
        _print_json(findings)
    else:
        titles = {rule.id: rule.title for rule in rules(target)}
        report.show(report.findings(findings, titles))
    if findings:
        raise SystemExit(GateError.exit_code)


def _print_json(value: Any) -> None:
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; the console script's entry point."""
    words = list(sys.argv[1:] if argv is None else argv)
    traces = _logging(words)
    previous = {number: signal.signal(number, _terminate) for number in ENDS if _is_heard(number)}
    try:
        app(words or ["--help"], exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _fail(_explain(error, words), 2, traces)
    except OptimizeError as error:
        return _fail(str(error), error.exit_code, traces)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130, False)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:
        return 0
    except Exception as error:  # ours: whatever was not foreseen
        text = f"internal error: {type(error).__name__}: {error}; please report it, with the output of -v"
        return _fail(text, BugError.exit_code, traces)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _is_heard(number: int) -> bool:
    """False for a signal that whoever started us wants ignored, as nohup does."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _terminate(number: int, frame: Any) -> None:
    """SIGTERM and a closed terminal unwind like Ctrl-C, so that temporary files go."""
    raise SystemExit(128 + number)


def _logging(words: Sequence[str]) -> bool:
    """Sends log records to stderr, as many as -v and -q ask for. Returns whether errors show their traceback."""
    level = sum(word.count("v") for word in words if word.strip("v") == "-") + words.count("--verbose")
    quiet = "-q" in words or "--quiet" in words
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(logging.Formatter("optimize: %(message)s"))
    for name in ("optimizer", "passes", "backends"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(level, 2)])
    return level > 0


class _Stderr:
    """Whatever sys.stderr is when something is written: a progress bar moves aside for it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _fail(text: str, code: int, traces: bool) -> int:
    if traces:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"optimize: error: {text}\n")
    return code


def _explain(error: CycloptsError, words: Sequence[str]) -> str:
    """cyclopts' message in one line, with what to do about the commonest mistakes."""
    text = " ".join(str(error).split())
    first = words[0] if words[0] not in COMMANDS else ""
    if not first.startswith("-") and (near := get_close_matches(first, COMMANDS, 1, 0.75)) and not Path(first).exists():
        return f"there is no command and no file '{first}'; did you mean 'optimize {near[0]}'?"
    if meant := re.search(r"Did you mean (\S+) instead of (\S+)\?", text):
        return f"there is no option {meant[2]}; did you mean {meant[1]}?"
    if isinstance(error, MissingArgumentError) and "--target" in text:
        return "--target is missing: say what to optimize for, e.g. --target ort-int8 ('optimize targets' lists all)"
    if isinstance(error, MissingArgumentError) and "--ratios" in text:
        return "--ratios is missing: say which shares to remove, e.g. --ratios 0.1,0.2,0.3"
    if isinstance(error, MissingArgumentError) and "MODEL" in text:
        return "the model is missing: optimize MODEL --target TARGET"
    if isinstance(error, UnusedCliTokensError):
        extra = list(error.unused_tokens or [])
        what = f"one model at a time, but '{extra[0]}' follows it" if extra else text
        quoted = any(word.endswith((".npz", ".npy", ".png", ".jpg")) for word in extra)
        return what + ("; quote the pattern: --data 'dir/*.npz'" if quoted else "; 'optimize --help' shows the usage")
    return text
