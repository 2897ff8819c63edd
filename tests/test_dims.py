"""Fixed dims of inputs: what reads, what fits, what else is fixed with them, and what the command line makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import optimizer
from optimizer.cli import main
from optimizer.context import Context
from optimizer.dims import fix_dims, parse_shape
from optimizer.errors import DataError, UserError
from optimizer.graph import Dim, Graph
from optimizer.io import to_model
from optimizer.manager import PassManager
from optimizer.pipeline import build
from optimizer.targets import SIMPLIFY
from tests.conftest import make, model

MODEL = """g (float[N,3,?] x, float[N,H] m, float[2] s) => (float[N,H] y, float[M] z)
{ a = ReduceMean (x)  b = Add (m, a)  y = Relu (b)  z = Neg (s) }"""


def shapes(graph: Graph) -> dict[str, list[Dim]]:
    return {t.name: list(t.shape) for t in graph.inputs}


def declared(graph: Graph) -> list[str]:
    made = to_model(graph).graph
    return [
        ",".join(
            d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in v.type.tensor_type.shape.dim
        )
        for v in [*made.input, *made.output]
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=1x3x224x224", ("x", (1, 3, 224, 224))),
        ("a:0=Nx?xH", ("a:0", ("N", None, "H"))),
        ("a=b=7", ("a=b", (7,))),
        ("x=batch_sizex3", ("x", ("batch_size", 3))),
    ],
)
def test_what_a_text_says(text: str, expected: tuple[str, tuple[Dim, ...]]) -> None:
    assert parse_shape(text) == expected


@pytest.mark.parametrize("text", ["x", "=1x3", "x=", "x=1x", "x=-1x3", "x=1,3", "x=0x3", "x=1.5"])
def test_what_does_not_read_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--shape .*(INPUT=SIZES, such as|1 or more)"):
        parse_shape(text)


def test_a_name_is_fixed_everywhere() -> None:
    graph = make(MODEL)
    changed = fix_dims(graph, {"x": (4, 3, 8)})
    assert changed == {"x": [4, 3, 8], "m": [4, "H"]}
    assert shapes(graph) == {"x": [4, 3, 8], "m": [4, "H"], "s": [2]}
    assert declared(graph) == ["4,3,8", "4,H", "2", "4,H", "M"]


def test_dims_are_kept_and_named() -> None:
    graph = make(MODEL)
    assert fix_dims(graph, {"x": ("N", None, "H"), "m": (None, 5)}) == {"x": ["N", 3, 5], "m": ["N", 5]}
    assert declared(graph) == ["N,3,5", "N,5", "2", "N,5", "M"]
    assert fix_dims(graph, {"x": ("N", 3, None)}) == {}


def test_an_input_of_any_rank_takes_what_it_gets() -> None:
    graph = make("g (float x) => (float y) { y = Relu (x) }")
    for info in graph.header.inputs if graph.header else ():
        info.type.tensor_type.ClearField("shape")
    graph.inputs[0].shape = None
    assert fix_dims(graph, {"x": (2, "N")}) == {"x": [2, "N"]}
    assert declared(graph)[0] == "2,N"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"q": (1,)}, "--shape names 'q', but the model's inputs are x, m, s"),
        ({"x": (1, 3)}, r"--shape x=1x3: the input is \[N,3,\?\], of rank 3"),
        ({"x": (1, 4, 8)}, "axis 1 cannot be 4, it is 3 in the model"),
        ({"x": ("N", "C", 8)}, "axis 1 cannot be C, it is 3 in the model"),
        ({"m": ("B", 8)}, "axis 0 cannot be B, its name is 'N', and . keeps it"),
        ({"x": (1, 3, 8), "m": (2, 8)}, "makes 'N' 1 and, for input 'm', 2: give one size"),
    ],
)
def test_contradictions_are_refused(wanted: dict[str, tuple[Dim, ...]], message: str) -> None:
    graph = make(MODEL)
    with pytest.raises(UserError, match=message):
        fix_dims(graph, wanted)
    assert shapes(graph) == shapes(make(MODEL))


def test_the_callers_model_stays_as_it_is(tmp_path: Path) -> None:
    given = model(MODEL)
    before = given.SerializeToString(deterministic=True)
    made = optimizer.optimize(given, target="onnx", out=tmp_path / "out", shapes={"x": (1, 3, 8)}, threads=1)
    assert given.SerializeToString(deterministic=True) == before
    assert made.manifest["interface"] == {"frozen": {}, "shapes": {"x": [1, 3, 8], "m": [1, "H"]}}
    found = onnx.load(made.model).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in found] == [1, 3, 8]


def test_fixed_sizes_fold(ctx: Context) -> None:
    graph = make("""g (float[N,T] x) => (float[N,T] y) <int64 i = {1}, int64 k = {6}> {
        s = Shape (x)  t = Gather (s, i)  c = Equal (t, k)
        y = If (c) <then_branch = p () => (float[N,T] a) { a = Neg (x) },
                    else_branch = q () => (float[N,T] b) { b = Abs (x) }> }""")
    fix_dims(graph, {"x": (None, 6)})
    PassManager().run(build(SIMPLIFY), graph, ctx)
    assert [node.op for node in graph.nodes] == ["Neg"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(MODEL), "net.onnx")
    return tmp_path


def test_the_command_says_what_it_fixed(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["net.onnx", "-t", "onnx", "--shape", "x=2x3x8", "--shape", "m=?x5", "--freeze", "s=0.5"]
    assert main(command) == 0
    assert "interface: s is always 0.5; x is 2x3x8; m is 2x5" in capfd.readouterr().out
    manifest = json.loads((place / "net.optimized" / "manifest.json").read_text())
    assert manifest["interface"] == {"frozen": {"s": 0.5}, "shapes": {"x": [2, 3, 8], "m": [2, 5]}}
    assert manifest["checked"]["outputs"]
    assert main(["net.onnx", "-t", "onnx", "--fix", "s=0.5", "-o", "older", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["manifest"]["interface"]["frozen"] == {"s": 0.5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shape", "x=2x3"], "of rank 3"),
        (["--shape", "x=2x4x8"], "axis 1 cannot be 4, it is 3 in the model"),
        (["--shape", "y=2"], "--shape names 'y'"),
        (["--shape", "x=2by3"], "is not INPUT=SIZES"),
        (["--shape", "x=1x3x8", "--shape", "x=2x3x8"], "twice for one input"),
        (["--freeze", "s"], "--freeze s is not INPUT=VALUE"),
        (["--freeze", "q=1"], "--freeze names 'q'"),
        (["--freeze", "s=1", "--fix", "s=2"], "--freeze is given twice for one input"),
        (["--freeze", "m=1"], "only inputs of a fixed shape can be bound"),
    ],
)
def test_mistakes_exit_with_2(place: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["net.onnx", "-t", "onnx", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (place / "net.optimized").exists()


def test_data_must_fit(place: Path) -> None:
    feed = {"x": np.ones((1, 3, 8), np.float32), "m": np.ones((1, 5), np.float32), "s": np.ones(2, np.float32)}
    with pytest.raises(DataError, match=r"'x' is \[1,3,8\], the model takes float32\[1,3,9\]: axis 2 must be 9"):
        optimizer.optimize("net.onnx", target="onnx", data=[feed], shapes={"x": (1, 3, 9)})
    made = optimizer.optimize(
        "net.onnx", target="onnx", data=[feed], shapes={"x": (1, 3, 8), "m": (1, 5)}, fixed={"s": 1}
    )
    assert made.manifest["checked"]["outputs"]
