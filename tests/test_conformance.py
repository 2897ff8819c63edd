"""The onnx package's own test cases for every operator, through `optimizer.simplify`: nothing may change.

Each case that ONNX Runtime runs as it is written is simplified and run again, once as given and once with every input
but the first made a constant (under Verify), so that folding and fusing meet every operator. Where the runtime itself
gives two answers to one question (random operators), only types and shapes are compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from optimizer import simplify
from optimizer.compare import compare
from optimizer.context import Context
from optimizer.evaluate import Evaluate, Feeds, session
from optimizer.instrument import Verify
from optimizer.io import load, to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.targets import SIMPLIFY, target

GROUPS = 16
RUNNABLE = 1450  # of some 1,900; the others use types or operators that ONNX Runtime's CPU kernels lack
IR_VERSION, OPSET = 13, 26  # what the runtime reads; newer ones differ in little that these cases use


Way = Callable[[onnx.ModelProto], onnx.ModelProto]


@cache
def suite() -> dict[str, tuple[onnx.ModelProto, Feeds]]:
    """Model and inputs of every case, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about the extreme values the cases are made of
        cases = load_model_tests(kind="node")
    found = {}
    for case in cases:
        case.model.ir_version = min(case.model.ir_version, IR_VERSION)
        for entry in case.model.opset_import:
            entry.version = entry.version if entry.domain else min(entry.version, OPSET)
        values = map(_value, case.data_sets[0][0])
        found[case.name] = case.model, dict(zip([v.name for v in case.model.graph.input], values, strict=False))
    return found


def _value(value: object) -> object:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


@pytest.mark.parametrize("group", range(GROUPS))
def test_operators(group: int) -> None:
    failures = []
    for name in list(suite())[group::GROUPS]:
        model, feeds = suite()[name]
        for way, made, given in ((simplify, model, feeds), (verified, *_constants(model, feeds))):
            reference = _twice(made, given)
            if reference is not None and (why := _failure(way, made, given, reference)):
                failures.append(f"{name} ({way.__name__}): {why}")
    assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures)


def test_most_cases_run() -> None:
    """Guards the test above: a case that no longer runs at all would pass it in silence."""
    assert len(suite()) >= RUNNABLE
    ran = sum(_twice(model, feeds) is not None for model, feeds in suite().values())
    assert ran >= RUNNABLE


def verified(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `simplify` does, every pass checked."""
    graph = load(model)
    PassManager([Verify()]).run(build(SIMPLIFY), graph, Context(target("onnx"), Evaluate(threads=1)))
    return to_model(graph)


def _failure(way: Way, model: onnx.ModelProto, feeds: Feeds, reference: list[Feeds]) -> str:
    """What simplifying the model breaks; empty where nothing."""
    try:
        result = way(model)
        onnx.checker.check_model(result)
        outputs = _run(result, feeds)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if _interface(result) != _interface(model):
        return "another interface"
    stable = all(d.within_rounding() for d in compare([(reference[0], reference[1])]).values())
    for name, difference in compare([(reference[0], outputs)]).items():
        if difference.broken or (stable and not difference.within_rounding()):
            return f"output '{name}': {difference.broken or difference}"
    return ""


def _constants(model: onnx.ModelProto, feeds: Feeds) -> tuple[onnx.ModelProto, Feeds]:
    """The case with all its inputs but the first made initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    kept = {v.name for v in model.graph.input[:1]}
    for info in model.graph.input[1:]:
        value = feeds.get(info.name)
        if info.type.HasField("tensor_type") and isinstance(value, np.ndarray):
            made.graph.initializer.append(onnx.numpy_helper.from_array(value, info.name))
        else:
            kept.add(info.name)
    inputs = [v for v in model.graph.input if v.name in kept]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    return made, {name: value for name, value in feeds.items() if name in kept}


def _twice(model: onnx.ModelProto, feeds: Feeds) -> list[Feeds] | None:
    try:
        return [_run(model, feeds), _run(model, feeds)]
    except Exception:  # the runtime raises several bare classes for "not implemented"
        return None


def _run(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    names = [v.name for v in model.graph.output]
    return dict(zip(names, session(model.SerializeToString(), threads=1).run(names, feeds), strict=True))


def _interface(model: onnx.ModelProto) -> list[bytes]:
    return [v.SerializeToString(deterministic=True) for v in [*model.graph.input, *model.graph.output]]
