"""The command line: what goes to stdout, what to stderr, and how soon --help answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import onnx
import pytest

from models import tiny
from optimizer import __version__, registry
from optimizer.cli import main
from optimizer.inspect import inspect
from optimizer.targets import targets

COMMAND = [sys.executable, "-c", "import sys; from optimizer.cli import main; sys.exit(main())"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny.ALL["conv_bn_relu"](), "net.onnx")
    return tmp_path


def test_help_teaches_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom optimizer.cli import main\ncode = main(['--help'])\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'networkx'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("--target", "--data", "--metric", "--strict", "'calib/*.npz'", "Exit codes", "inspect"):
        assert word in done.stdout


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"{__version__}\n"


def test_targets_lists_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in targets())
    assert main(["targets", "--json"]) == 0
    assert [row["target"] for row in json.loads(capfd.readouterr().out)] == list(targets())


def test_passes_lists_the_registry(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--json"]) == 0
    rows = {row["pass"]: row for row in json.loads(capfd.readouterr().out)}
    assert list(rows) == registry.pass_names()
    assert "scheme=hybrid" in rows["quantize"]["options"]
    assert rows["quantize"]["lossy"]
    assert not rows["fold"]["lossy"]
    assert rows["fixpoint"]["takes_passes"]
    assert main(["passes"]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in rows)


def test_a_table_on_stdout_notes_on_stderr(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["net.onnx", "--target", "ort-fp32", "--threads", "1"]) == 0
    out, err = capfd.readouterr()
    assert "net.ort-fp32/model.onnx" in out
    assert "original" in out and "float" in out and "1.00x" in out
    assert "RANDOM inputs (random:16)" in err
    assert "RANDOM" not in out


def test_json_is_all_of_stdout(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["net.onnx", "--target", "onnx", "-o", "out", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["model"] == "out/model.onnx"
    assert found["manifest"] == json.loads(Path("out/manifest.json").read_text())


def test_quiet_says_nothing(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["net.onnx", "--target", "onnx", "-q"]) == 0
    assert capfd.readouterr() == ("", "")


def test_the_runtimes_chatter_is_silenced(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model with an unused initializer and a wrong shape note makes onnxruntime warn by default."""
    model = onnx.load("net.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(__import__("numpy").zeros(3, "f"), "unused"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    onnx.save(model, "odd.onnx")
    assert main(["odd.onnx", "--target", "ort-fp32", "--threads", "1", "--data", "random:2"]) == 0
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("opset", "said"),
    [("6", "--opset 6: min must be between"), ("13", "of operator set 17 and cannot be lowered to 13: ask for 17 up")],
)
def test_an_operator_set_that_cannot_be_had_is_exit_2(
    place: Path, capfd: pytest.CaptureFixture[str], opset: str, said: str
) -> None:
    assert main(["net.onnx", "--target", "onnx", "--opset", opset]) == 2
    assert said in capfd.readouterr().err
    assert not Path("net.optimized").exists()


def test_strict_is_exit_4(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["net.onnx", "--target", "ort-int8", "--scheme", "static", "--min-sqnr", "200", "--threads", "1"]
    assert main([*argv, "--strict"]) == 4
    assert "limit 200" in capfd.readouterr().err
    assert not Path("net.ort-int8").exists()
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert "float is shipped: static" in err
    assert "limit 200" in out


def test_a_file_called_like_a_command(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("net.onnx").rename("targets")
    assert main(["./targets", "--target", "onnx"]) == 0
    assert Path("targets.onnx/model.onnx").is_file()


def test_the_default_folder_is_never_the_model(place: Path) -> None:
    assert main(["net.onnx", "--target", "onnx", "-q"]) == 0
    assert Path("net.optimized/model.onnx").is_file()


def test_dump_writes_every_step(place: Path) -> None:
    assert main(["net.onnx", "--target", "onnx", "--dump", "steps", "--verify-each", "-q"]) == 0
    assert list(Path("steps/float").glob("*-fuse.onnx"))
    assert list(Path("steps/float").glob("*-fuse.txt"))


def test_bisect_limit_stops_early(place: Path) -> None:
    for limit, nodes in ((0, 13), (100, 9)):
        assert main(["net.onnx", "--target", "onnx", "--bisect-limit", str(limit), "-q", "-o", f"n{limit}"]) == 0
        assert (len(onnx.load(f"n{limit}/model.onnx").graph.node) == 13) == (nodes == 13)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing(place: Path, number: signal.Signals) -> None:
    (place / "feeds.py").write_text(
        "import time, numpy as np\ndef make():\n    yield {'image': np.zeros((1, 3, 16, 16), np.float32)}\n"
        "    open('ready', 'w').close()\n    time.sleep(60)\n"
    )
    argv = [*COMMAND, "net.onnx", "--target", "onnx", "--data", "feeds.py:make"]
    heard = partial(signal.signal, number, signal.SIG_DFL)  # whatever started the tests may ignore it
    process = subprocess.Popen(argv, cwd=place, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not (place / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert [p for p in place.iterdir() if p.name.startswith(".net.")] != []
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == ["feeds.py", "net.onnx", "ready"]


def test_inspect_counts(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "net.onnx", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts == inspect(Path("net.onnx"))
    spatial = 16 * 16 * 9
    assert facts["macs"] == spatial * (3 * 8 + 8 * 8 + 8 * 8) + 8 * 10
    assert facts["operators"]["Conv"] == {"count": 3, "macs": spatial * (3 * 8 + 8 * 8 + 8 * 8)}
    assert facts["macs_at"] == {"image": [1, 3, 16, 16]}
    assert facts["macs_unknown"] == 0
    assert facts["opset"] == {"ai.onnx": 17}
    assert facts["inputs"] == {"image": "float32[N,3,16,16]"}
    assert facts["bytes"] == Path("net.onnx").stat().st_size
    assert main(["inspect", "net.onnx"]) == 0
    assert "BatchNormalization" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = MatMul(x, w)", 6 * 4),
        ("y = Gemm<transB=1>(x, v)", 6 * 4),
        ("y = Relu(x)", 0),
    ],
)
def test_macs(tmp_path: Path, body: str, expected: int) -> None:
    numbers = ",".join("1" * 24)
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,6] x) => (float[N,4] y)
        <float[6,4] w = {{{numbers}}}, float[4,6] v = {{{numbers}}}> {{ {body} }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert inspect(tmp_path / "m.onnx")["macs"] == expected


def test_macs_of_a_recurrent_layer(tmp_path: Path) -> None:
    onnx.save(tiny.ALL["lstm"](), tmp_path / "m.onnx")
    facts = inspect(tmp_path / "m.onnx")
    assert facts["operators"]["LSTM"]["macs"] > 0
