"""Every message a wrong input can earn: exit code 2 (or what it should be), one line, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models import tiny
from optimizer.cli import main

NODES = "relu = helper.make_node('Relu', ['x'], ['y'])"


def relu(shape: Sequence[int | str] = ("N", 3), opset: int = 17, op: str = "Relu", domain: str = "") -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], name="first", domain=domain)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph([node], "g", infos[:1], infos[1:]), opset_imports=imports, ir_version=8)


def external(location: str) -> onnx.ModelProto:
    model = relu()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    model.graph.initializer.append(weight)
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    return model


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good model `m.onnx`, good data `good/`, and everything that can be wrong."""
    monkeypatch.chdir(tmp_path)
    onnx.save(relu(), "m.onnx")
    onnx.save(relu(opset=999), "future.onnx")
    onnx.save(relu(op="Reluu"), "unknown.onnx")
    onnx.save(relu(op="Custom", domain="my.ops"), "custom.onnx")
    onnx.save(tiny.ALL["embedding"](), "ids.onnx")
    Path("missing.onnx").write_bytes(external("gone.bin").SerializeToString())
    Path("escape.onnx").write_bytes(external("../../etc/passwd").SerializeToString())
    Path("short.onnx").write_bytes(external("short.bin").SerializeToString())
    Path("short.bin").write_bytes(b"1234")
    Path("text.onnx").write_text("this is not a model\n")
    Path("empty.onnx").touch()
    Path("cut.onnx").write_bytes(relu().SerializeToString()[:40])
    Path("notes.txt").write_text("hello")
    Path("task.py").write_text(
        "import numpy as np\ndef bad(run): return float('nan')\ndef raises(run): raise ValueError('no labels')\n"
        "def feeds():\n    yield {'x': [1, 2]}\ndef broken():\n    yield {'x': np.zeros((1, 3), np.float32)}\n"
        "    raise RuntimeError('disk on fire')\ndef none(): return []\ndef number(): return 3\n"
    )
    Path("syntax.py").write_text("def f(:\n")
    for folder, feed in {
        "good": {"x": np.ones((1, 3), np.float32)},
        "name": {"image": np.ones((1, 3), np.float32)},
        "more": {"x": np.ones((1, 3), np.float32), "z": np.ones(1)},
        "dtype": {"x": np.ones((1, 3))},
        "rank": {"x": np.ones(3, np.float32)},
        "dim": {"x": np.ones((1, 4), np.float32)},
        "nan": {"x": np.array([[1, np.nan, 2]], np.float32)},
        "inf": {"x": np.array([[1, np.inf, 2]], np.float32)},
        "none": {},
    }.items():
        Path(folder).mkdir()
        np.savez(Path(folder, "00.npz"), **feed)
    Path("torn").mkdir()
    Path("torn/00.npz").write_bytes(Path("good/00.npz").read_bytes()[:50])
    Path("pickled").mkdir()
    np.savez("pickled/00.npz", x=np.array([{}], object))
    Path("mixed").mkdir()
    Path("mixed/a.npz").write_bytes(Path("good/00.npz").read_bytes())
    np.save("mixed/b.npy", np.ones((1, 3), np.float32))
    Path("pictures").mkdir()
    Path("pictures/a.png").write_text("not a png")
    Path("nothing").mkdir()
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    return tmp_path


RUN = ["m.onnx", "--target", "ort-fp32", "--threads", "1"]


def with_data(spec: str, *more: str, model: str = "m.onnx") -> list[str]:
    return [model, *RUN[1:], "--data", spec, *more]


CASES = [
    # the command line
    ("no target", ["m.onnx"], ["--target is missing", "ort-int8"]),
    ("no model", ["--target", "onnx"], ["model is missing"]),
    ("unknown target", ["m.onnx", "--target", "ort-int"], ["no target is called 'ort-int'", "ort-int8"]),
    ("misspelt target option", ["m.onnx", "--targt", "onnx"], ["--target", "--targt"]),
    ("misspelt command", ["inspct", "m.onnx"], ["no command", "'inspct'", "optimize inspect"]),
    ("two models", [*RUN, "ids.onnx"], ["one model at a time", "ids.onnx"]),
    ("unknown option", [*RUN, "--tread", "2"], ["--tread", "--threads"]),
    ("unquoted pattern", [*RUN, "--data", "good/00.npz", "name/00.npz"], ["name/00.npz", "quote the pattern"]),
    ("not a number", [*RUN[:3], "--threads", "two"], ["--threads", "two"]),
    ("negative threads", ["m.onnx", "--target", "onnx", "--threads", "-1"], ["--threads -1", "0 or more"]),
    ("unknown scheme", [*RUN, "--scheme", "statik"], ["no scheme 'statik'", "float"]),
    ("unknown pass", [*RUN, "--passes", "clenup"], ["no pass is called 'clenup'", "cleanup", "^"]),
    ("unknown option of a pass", [*RUN, "--passes", "cleanup{x=1}"], ["no option 'x'", "^"]),
    ("bad pipeline", [*RUN, "--passes", "cleanup,(fold"], ["expected", "^"]),
    # the model
    ("no such model", ["gone.onnx", *RUN[1:]], ["no model at 'gone.onnx'"]),
    ("a folder for a model", ["good", *RUN[1:]], ["no model at 'good'"]),
    ("not a model", ["text.onnx", *RUN[1:]], ["'text.onnx' is not an ONNX model"]),
    ("empty file", ["empty.onnx", *RUN[1:]], ["'empty.onnx' is not an ONNX model"]),
    ("truncated", ["cut.onnx", *RUN[1:]], ["'cut.onnx'", "cut short"]),
    ("unknown opset", ["future.onnx", *RUN[1:]], ["operator set 999", "upgrade"]),
    ("unknown operator", ["unknown.onnx", *RUN[1:]], ["'first'", "'Reluu'"]),
    ("operator without kernel", ["custom.onnx", *RUN[1:]], ["ONNX Runtime cannot load", "Custom"]),
    ("weights missing", ["missing.onnx", *RUN[1:]], ["'w'", "'gone.bin'", "missing"]),
    ("weights outside", ["escape.onnx", *RUN[1:]], ["'w'", "outside"]),
    ("weights cut short", ["short.onnx", *RUN[1:]], ["'w'", "short.bin"]),
    # the data
    ("no match", with_data("gone/*.npz"), ["'gone/*.npz' matches no file"]),
    ("wrong kind", with_data("notes.txt"), ["neither .npz, .npy nor a picture"]),
    ("empty folder", with_data("nothing"), ["holds no .npz"]),
    ("mixed kinds", with_data("mixed/*"), ["mixes kinds"]),
    ("wrong name", with_data("name"), ["name/00.npz", "'image'", "'x'", "rename"]),
    ("a name too many", with_data("more"), ["more/00.npz", "'z'"]),
    ("a name missing", with_data("none"), ["none/00.npz", "lacks the input 'x'"]),
    ("wrong dtype", with_data("dtype"), ["float64", "float32", ".astype('float32')"]),
    ("wrong rank", with_data("rank"), ["rank 1", "rank 2", "batch axis"]),
    ("wrong dim", with_data("dim"), ["axis 1 must be 3"]),
    ("NaN", with_data("nan"), ["'x' holds NaN"]),
    ("infinity", with_data("inf"), ["'x' holds infinity"]),
    ("torn file", with_data("torn"), ["torn/00.npz", "numpy.savez"]),
    ("pickled objects", with_data("pickled"), ["pickled/00.npz", "is object", "float32"]),
    ("one array for two inputs", with_data("mixed/b.npy", model="ids.onnx"), ["mixed/b.npy"]),
    ("no function", with_data("task.py:fedes"), ["no function 'fedes'", "feeds"]),
    ("no Python file", with_data("gone.py:feeds"), ["no file 'gone.py'"]),
    ("syntax error", with_data("syntax.py:f"), ["'syntax.py' does not import", "SyntaxError"]),
    ("lists for arrays", with_data("task.py:feeds"), ["feed 0", "'x' is a list", "numpy array"]),
    ("function raises", with_data("task.py:broken"), ["RuntimeError: disk on fire"]),
    ("function yields nothing", with_data("task.py:none"), ["holds no feed"]),
    ("not iterable", with_data("task.py:number"), ["TypeError"]),
    ("random without a number", with_data("random:many"), ["random:N", "random:16"]),
    ("pictures without preprocess", with_data("pictures"), ["--preprocess imagenet"]),
    ("pictures for vectors", with_data("pictures", "--preprocess", "imagenet"), ["pictures", "'x'", ".npz"]),
    ("statistics of another kind", [*RUN, "--statistics", "good/00.npz"], ["good/00.npz", "statistics"]),
    # limits
    ("metric is NaN", with_data("good", "--metric", "task.py:bad"), ["returned nan", "finite"]),
    ("metric raises", with_data("good", "--metric", "task.py:raises"), ["--metric failed: ValueError: no labels"]),
    ("metric without function", with_data("good", "--metric", "task.py"), ["file.py:function"]),
    ("agreement is a share", [*RUN, "--min-agreement", "98"], ["--min-agreement 98", "0.98"]),
    ("negative drop", [*RUN, "--max-drop", "-1"], ["--max-drop -1"]),
    # the output
    ("output is a file", [*RUN, "-o", "notes.txt"], ["'notes.txt' is a file", "-o"]),
    ("output below a file", [*RUN, "-o", "notes.txt/out"], ["cannot write in", "-o"]),
    ("output holds other things", [*RUN, "-o", "mine"], ["'mine' holds files", "-o"]),
    ("output is here", [*RUN, "-o", "."], ["holds files", "-o"]),
    # inspect
    ("inspect nothing", ["inspect"], ["model is missing"]),
    ("inspect a text", ["inspect", "text.onnx"], ["'text.onnx' is not an ONNX model"]),
]


@pytest.mark.parametrize(("argv", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_message(place: Path, capfd: pytest.CaptureFixture[str], argv: list[str], said: list[str]) -> None:
    before = sorted(str(p) for p in place.rglob("*") if "__pycache__" not in str(p))
    code = main(argv)
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("  ")]  # a pipeline's caret is indented
    assert code == 2, err
    assert out == ""
    assert [line for line in lines if line.startswith("optimize: error: ")] == lines, err
    assert len(lines) == 1, err
    for part in said:
        assert part in err
    assert "Traceback" not in err
    assert sorted(str(p) for p in place.rglob("*") if "__pycache__" not in str(p)) == before


def test_verbose_adds_the_traceback(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["text.onnx", "--target", "onnx", "-v"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_missing_runtime_is_exit_3(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.ort.find_spec", lambda name: None)
    assert main(RUN) == 3
    assert "pip install onnxruntime" in capfd.readouterr().err
    assert not (place / "m.ort-fp32").exists()


def test_interrupt_leaves_nothing(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.api.judge", stop)
    assert main(RUN) == 130
    assert "interrupted" in capfd.readouterr().err
    assert not [p for p in place.iterdir() if "ort-fp32" in p.name]


def failing(make: Callable[[], Exception]) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise make()

    return fail


def test_the_unforeseen_is_exit_1_in_one_line(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.api.pick", failing(lambda: RuntimeError("surprise")))
    assert main([*RUN, "-q"]) == 1
    err = capfd.readouterr().err
    assert err.startswith("optimize: error: internal error: RuntimeError: surprise")
    assert err.count("\n") == 1
