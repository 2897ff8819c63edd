"""`optimize explain`: what made each node, what went where, and which precondition kept a rule from firing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from models import tiny
from optimizer.cli import main
from optimizer.decode import ORIGIN
from optimizer.explain import explain
from optimizer.graph import Tensor
from optimizer.io import to_model
from optimizer.journal import Journal
from optimizer.match import Match
from optimizer.nearmiss import REASONS, Miss, near_misses
from optimizer.rewrite import Draft, Rule, apply_rules, rule
from tests.conftest import make, model

W = "float[2,2] w = {1, 2, 3, 4}, float[2] b = {1, 2}"


def told(text: str, passes: str | None = None, node: str | None = None, opset: int = 17) -> dict[str, Any]:
    return explain(model(text, opset), passes=passes, node=node)


def made_of(found: dict[str, Any]) -> dict[str, list[str]]:
    """For each node of the result, by its first output: the outputs of the nodes it stands for."""
    return {row["outputs"][0]: [one["outputs"][0] for one in row["from"]] for row in found["nodes"]}


def steps(found: dict[str, Any], output: str) -> list[str]:
    (row,) = (row for row in found["nodes"] if output in row["outputs"])
    return [found["rewrites"][n]["rule"] or found["rewrites"][n]["pass"] for n in row["rewrites"]]


def gone(found: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    """What took each node that is gone, and what its readers read now."""
    edits = found["rewrites"]
    rows = {row["outputs"][0]: (edits[row["rewrite"]], row["into"]) for row in found["gone"]}
    return {name: (edit["rule"] or edit["pass"], into) for name, (edit, into) in rows.items()}


# ------------------------------------------------------------------ where nodes come from


def test_a_fused_node_stands_for_what_it_is_made_of() -> None:
    found = told(f"g (float[N,2] x) => (float[N,2] y) <{W}> {{ m = MatMul(x, w) a = Add(m, b) y = Relu(a) }}")
    assert made_of(found) == {"a": ["a", "m"], "y": ["y"]}
    assert steps(found, "a") == ["matmul-add"] and steps(found, "y") == []
    assert [row["kept"] for row in found["nodes"]] == [False, True]
    assert found["rules"] == [{"pass": "fuse", "rule": "matmul-add", "count": 1}]
    assert (found["nodes_before"], found["nodes_after"], found["gone"]) == (3, 2, [])


def test_origins_add_up_over_several_rewrites() -> None:
    found = explain(tiny.ALL["attention"]())
    (norm,) = (row for row in found["nodes"] if row["outputs"] == ["add8"])
    assert {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"} <= {one["op"] for one in norm["from"]}
    assert steps(found, "add8") == ["layer-norm", "norm-mul", "norm-add"]


@pytest.mark.parametrize(
    ("body", "passes", "expected"),
    [
        ("a = Identity(x) y = Relu(a)", "cleanup", {"a": ("identity", "x")}),
        ("a = Neg(x) b = Neg(a) y = Relu(b)", "cleanup", {"a": ("cleanup", "x"), "b": ("undone", "x")}),
        ("a = Neg(x) b = Neg(x) c = Add(a, b) y = Relu(c)", "cse", {"b": ("cse", "a")}),
        ("a = Exp(w) c = Sqrt(a) y = Add(x, c)", "fold", {"a": ("fold", "c_1"), "c": ("fold", "c_1")}),
        ("a = Relu(x) c = Neg(a) y = Exp(x)", "cleanup", {"a": ("cleanup", None), "c": ("cleanup", None)}),
    ],
)
def test_what_is_gone(body: str, passes: str, expected: dict[str, tuple[str, str | None]]) -> None:
    found = gone(told(f"g (float[2] x) => (float[2] y) <float[2] w = {{1, 2}}> {{ {body} }}", passes))
    assert found == expected


def test_a_bridge_stands_for_what_made_the_output() -> None:
    found = told("g (float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }", "cleanup")
    assert made_of(found) == {"y": ["y"]}
    assert steps(found, "y")[-1] == "bridge"


def test_a_node_that_reads_another_constant_says_so() -> None:
    text = """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}>
        { p = Add(x, a) q = Relu(p) y = Mul(q, b) }"""
    (edit,) = told(text, "cleanup")["rewrites"]
    assert (edit["instead_of"], edit["into"], edit["took"]) == ("b", "a", edit["made"])


def test_a_result_taken_over_by_new_nodes() -> None:
    text = """g (float[N,3] x) => (int64[1] y) <int64[1] i = {0}, int64[1] j = {1}>
        { s = Shape(x) t = Slice(s, i, j) y = Neg(t) }"""
    found = told(text, "shapes")
    assert [row["op"] for row in found["nodes"]] == ["Shape", "Neg"]
    assert made_of(found)["t"] == ["t", "s"] and steps(found, "t") == ["shapes"]


@pytest.mark.parametrize("name", sorted(tiny.ALL))
def test_every_node_is_accounted_for(name: str) -> None:
    found = explain(tiny.ALL[name]())
    assert all(row["from"] for row in found["nodes"])
    left = {one["node"] for row in found["nodes"] for one in row["from"]} | {row["node"] for row in found["gone"]}
    assert len(left) == found["nodes_before"]
    assert all(row["rewrite"] is not None for row in found["gone"])


def test_explaining_changes_nothing() -> None:
    import optimizer

    original = tiny.ALL["redundant"]()
    simple = optimizer.simplify(original)
    found = explain(original)
    assert [row["node"] for row in found["nodes"]] == [node.name for node in simple.graph.node]


# ------------------------------------------------------------------ near misses


@rule("Neg(Neg(x))")
def drop_pair(m: Match, make: Draft) -> Tensor | None:
    return m["x"]


@rule("Abs(Mul(x, c))")
def drop_ones(m: Match, make: Draft) -> Tensor | None:
    array = make.array(m["c"])
    return m["x"] if array is not None and (array == 1).all() else None


@rule("Abs(Exp(x))", since=18)
def newer(m: Match, make: Draft) -> Tensor | None:
    return make.node("Mish", m["x"])


@rule("Abs(Exp(x))", fast_math=True)
def hasty(m: Match, make: Draft) -> Tensor | None:
    return make.node("Exp", m["x"])


@rule("Abs(Exp(x))")
def shy(m: Match, make: Draft) -> Tensor | None:
    if len(m["x"].shape) != 4:
        return None
    return m["x"]


@rule("Abs(Exp(x))")
def heavy(m: Match, make: Draft) -> Tensor | None:
    return make.node("Add", m["x"], make.constant(np.zeros((600, 2), np.float32)))


@rule("Abs(Exp(x))")
def typed(m: Match, make: Draft) -> Tensor | None:
    return make.node("Cast", m["x"], attrs={"to": onnx.TensorProto.INT64})


@rule("Abs(Exp(x))")
def ranked(m: Match, make: Draft) -> Tensor | None:
    return make.node("Reshape", m["x"], make.constant(np.array([-1])))


@rule("Abs(Exp(x))")
def untypable(m: Match, make: Draft) -> Tensor | None:
    return make.node("MatMul", m["x"], make.constant(np.zeros((7, 7), np.float32)))


@rule("Abs(x)")
def lone(m: Match, make: Draft) -> Tensor | None:
    return None


def missed(one: Rule, body: str, outputs: str = "float[N,2] y", defaults: str = "") -> list[Miss]:
    graph = make(f"g (float[N,2] x{defaults}) => ({outputs}) <float[2] w = {{1, 1}}> {{ {body} }}")
    graph.journal = journal = Journal()
    assert apply_rules(graph, [one]) == {}
    return near_misses(graph, journal.applied)


@pytest.mark.parametrize(
    ("one", "body", "reason", "detail"),
    [
        (drop_pair, "a = Neg(x) b = Neg(a) c = Add(a, b) y = Abs(c)", "reader", "'a', read by 'Add'"),
        (drop_ones, "a = Mul(x, x) y = Abs(a)", "variable", "'x'"),
        (newer, "a = Exp(x) y = Abs(a)", "opset", "it needs 18, the model's is 17"),
        (hasty, "a = Exp(x) y = Abs(a)", "fast-math", ""),
        (shy, "a = Exp(x) y = Abs(a)", "guard", 'if len(m["x"].shape) != 4 (test_explain.py:'),
        (heavy, "a = Exp(x) y = Abs(a)", "growth", "by 4.8 kB"),
        (typed, "a = Exp(x) y = Abs(a)", "dtype", "float32[N,2] and int64[N,2]"),
        (ranked, "a = Exp(x) y = Abs(a)", "shape", "float32[N,2] and float32[?]"),
        (untypable, "a = Exp(x) y = Abs(a)", "inference", ""),
    ],
)
def test_reasons(one: Rule, body: str, reason: str, detail: str) -> None:
    (miss,) = missed(one, body)
    assert (miss.rule, miss.reason, miss.trivial) == (one.name, reason, False)
    assert miss.detail.startswith(detail) and bool(miss.detail) == bool(detail)
    assert REASONS[reason] in miss.text


def test_an_inner_output_is_a_reason() -> None:
    (miss,) = missed(drop_pair, "a = Neg(x) b = Neg(a) y = Abs(b)", "float[N,2] y, float[N,2] a")
    assert (miss.reason, miss.detail) == ("output", "'a'")


def test_a_default_is_a_reason() -> None:
    (miss,) = missed(drop_ones, "a = Mul(x, w) y = Abs(a)", defaults=", float[2] w")
    assert (miss.reason, miss.detail) == ("overridable", "'w'")


def test_a_pattern_of_one_operator_is_no_news() -> None:
    (miss,) = missed(lone, "a = Exp(x) y = Abs(a)")
    assert miss.trivial
    found = told("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    assert found["near_misses"] == []
    assert told("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }", node="y")["near_misses"]


def test_a_rule_that_would_fire_still_says_so() -> None:
    graph = make("g (float[N,2] x) => (float[N,2] y) { a = Neg(x) b = Neg(a) y = Abs(b) }")
    (miss,) = near_misses(graph, {("fuse", "drop-pair"): (drop_pair, False)})
    assert miss.reason == "open"


# ------------------------------------------------------------------ the command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny.ALL["redundant"](), "net.onnx")
    return tmp_path


def test_the_table(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "net.onnx"]) == 0
    out = capfd.readouterr().out
    for word in ("9 nodes became 3", "matmul-add", "(Dropout)", "gemm-mul", "a value is not a constant: 'matmul0'"):
        assert word in out


def test_json_has_the_documented_fields(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    documented = (Path(__file__).parents[1] / "docs" / "explain.md").read_text()
    assert main(["explain", "net.onnx", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    rows = [found, *(found[key][0] for key in ("rules", "nodes", "gone", "rewrites", "near_misses"))]
    assert all(f"`{key}`" in documented for row in rows for key in row)
    assert all(f"`{key}`" in documented for key in REASONS)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("add3_1", ["went into add3_2 (Gemm)", "matmul-add (fuse): add3_1 (Add), matmul0_1 (MatMul) became add3_2"]),
        ("add3_2", ["add3_2 (Gemm) -> add3: made of add3_1 (Add), matmul0_1 (MatMul)"]),
        ("matmul1", ["matmul1_1 (MatMul) is gone: its readers read 'matmul0'", "cse: matmul1_1 (MatMul) gave way"]),
        ("mul8", ["mul8 (Mul) -> y: as it came", "gemm-mul at"]),
    ],
)
def test_one_node(place: Path, capfd: pytest.CaptureFixture[str], node: str, said: list[str]) -> None:
    assert main(["explain", "net.onnx", "--node", node]) == 0
    out = capfd.readouterr().out
    assert all(part in out for part in said), out


def test_another_pipeline(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "net.onnx", "--passes", "cleanup,cse", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["pipeline"] == "cleanup,cse" and {"pass": "cse", "rule": None, "count": 1} in found["rules"]
    argv = ["explain", "net.onnx", "--target", "ort-int8", "--scheme", "dynamic", "--json"]
    assert main(argv) == 0
    assert "quantize{scheme=dynamic}" in json.loads(capfd.readouterr().out)["pipeline"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--node", "add33"], ["--node add33", "did you mean add3"]),
        (["--passes", "fuze"], ["no pass is called 'fuze'", "fuse"]),
        (["--target", "onxx"], ["no target is called 'onxx'", "onnx"]),
        (["--pruning", "--node", "add3"], ["--node and --pruning"]),
        (["--passes", "calibrate"], ["--data"]),
        (["--data", "random:many"], ["random:N"]),
    ],
)
def test_wrong_input(place: Path, capfd: pytest.CaptureFixture[str], argv: list[str], said: list[str]) -> None:
    assert main(["explain", "net.onnx", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == "" and len([line for line in err.splitlines() if not line.startswith("  ")]) == 1
    assert all(part in err for part in said), err


# ------------------------------------------------------------------ what stays in the file


def test_a_normal_model_carries_nothing() -> None:
    graph = make("g (float[2] x) => (float[2] y) { a = Neg(x) y = Relu(a) }")
    assert graph.journal is None and graph.copy().journal is None
    assert not any(node.metadata_props for node in to_model(graph).graph.node)


def provenance(path: str) -> dict[str, dict[str, list[str]]]:
    """What the nodes of a file say of themselves, by name."""
    nodes = onnx.load(path).graph.node
    return {n.name: json.loads(p.value) for n in nodes for p in n.metadata_props if p.key == ORIGIN}


def test_provenance_is_kept_where_asked_for(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = onnx.load("net.onnx")
    given.ir_version = 10
    onnx.save(given, "net.onnx")
    assert main(["net.onnx", "--target", "onnx", "--keep-provenance", "--verify-each", "-q", "-o", "kept"]) == 0
    assert provenance("kept/model.onnx") == {"add3_2": {"from": ["add3_1", "matmul0_1"], "by": ["matmul-add"]}}
    assert main(["kept/model.onnx", "--target", "onnx", "-q", "-o", "again"]) == 0
    assert provenance("again/model.onnx") == {}
    assert main(["net.onnx", "--target", "onnx", "-q", "-o", "plain"]) == 0
    assert provenance("plain/model.onnx") == {}
    assert capfd.readouterr().err == ""


def test_provenance_follows_into_candidates(place: Path) -> None:
    given = tiny.ALL["conv_bn_relu"]()
    given.ir_version = 10
    onnx.save(given, "net.onnx")
    argv = ["net.onnx", "--target", "ort-int8", "--scheme", "static", "--min-sqnr", "-99", "--min-agreement", "0"]
    assert main([*argv, "--data", "random:2", "--threads", "1", "--keep-provenance", "-q", "-o", "kept"]) == 0
    made = [one["by"] for one in provenance("kept/model.onnx").values()]
    assert ["conv-bn"] in made and ["conv-bn", "quantize"] in made


def test_old_files_have_no_place_for_provenance(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = onnx.load("net.onnx")
    given.ir_version = 8
    onnx.save(given, "net.onnx")
    assert main(["net.onnx", "--target", "onnx", "--keep-provenance", "-o", "out"]) == 0
    assert "IR version 10 on, and the model's is 8" in capfd.readouterr().err
    assert provenance("out/model.onnx") == {}
