"""What every test shares: `--update` for golden files, the oracle, a context, and models written as text."""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnx
import pytest

from optimizer.context import Context
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph
from optimizer.io import load
from optimizer.targets import target

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>\n'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the result section of the golden cases")


@pytest.fixture(autouse=True)
def heard() -> None:
    """The command line keeps log records to itself; `caplog` hears them whatever ran before in this process."""
    for name in ("optimizer", "passes", "backends"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def ctx() -> Context:
    """What a pass may ask for, on the portable target, with one thread."""
    return Context(target("onnx"), Evaluate(threads=1))


@pytest.fixture
def graph() -> Callable[..., Graph]:
    """`graph("g (float[N] x) => (float[N] y) { y = Relu(x) }", opset=17)`: a Graph from ONNX text."""
    return make


def model(text: str, opset: int = 17) -> onnx.ModelProto:
    """A ModelProto from ONNX text; a header is put before it where it has none."""
    return onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER.format(opset=opset) + text)


def make(text: str, opset: int = 17) -> Graph:
    return load(model(text, opset))
