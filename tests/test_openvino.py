"""OpenVINO, and the providers of GPUs: what they say of themselves, and where they run that they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import backends.gpu as gpu
import backends.openvino as openvino
from backends.openvino import OpenvinoBackend, bf16
from models import fashion
from optimizer.engine import Built
from optimizer.errors import ModelError, UnavailableError, UserError
from optimizer.evaluate import Evaluate
from optimizer.io import load, save
from optimizer.targets import REFUSED, targets
from tests.conftest import model

FOLDER = Path(fashion.__file__).parent
MODEL = FOLDER / "fashion.onnx"

here = pytest.mark.skipif(OpenvinoBackend().available() is not None, reason="OpenVINO cannot run here")


def feeds(count: int = 1) -> list[dict[str, Any]]:
    files = sorted((FOLDER / "calib").glob("*.npz"))[:count]
    return [dict(np.load(file)) for file in files]


@here
def test_float_is_what_onnxruntime_computes() -> None:
    graph = load(MODEL)
    feed = feeds()[0]
    with Evaluate(1).open(graph) as oracle, OpenvinoBackend().open(Built(MODEL), 1) as session:
        expected, got = oracle(feed), session.run(feed)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=1e-3, atol=1e-4)


@here
def test_outputs_of_one_tensor_keep_both_names(tmp_path: Path) -> None:
    text = "g (float[N,3] x) => (float[N,3] a, float[N,3] b, float[N,3] c) { a = Relu(x) b = Identity(a) c = Neg(a) }"
    onnx.save(model(text), tmp_path / "m.onnx")
    x = np.array([[-1.0, 2.0, 3.0]], np.float32)
    with OpenvinoBackend().open(Built(tmp_path / "m.onnx"), 1) as session:
        got = session.run({"x": x})
    assert {name: array.tolist() for name, array in got.items()} == {
        "a": [[0, 2, 3]], "b": [[0, 2, 3]], "c": [[0, -2, -3]],
    }  # fmt: skip


@here
def test_the_profile_covers_the_model() -> None:
    kernels = OpenvinoBackend().profile(Built(MODEL), 1, feeds(2))
    assert kernels and sum("Conv" in kernel.op for kernel in kernels) >= 3
    assert sum(kernel.seconds for kernel in kernels) > 0


@here
def test_a_model_that_does_not_load_is_an_error_with_the_reason(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "nobody" : 1]>\ng (float[3] x) => (float[3] y) { y = nobody.Op(x) }'
    onnx.save(model(text), tmp_path / "m.onnx")
    with (
        pytest.raises(ModelError, match=r"OpenVINO cannot load the model: .*\w"),
        OpenvinoBackend().open(Built(tmp_path / "m.onnx"), 1),
    ):
        pass


@here
def test_the_recipe_says_what_opens_the_file() -> None:
    recipe = OpenvinoBackend().recipe()
    assert recipe["library"] in ("openvino", "onnxruntime-ep-openvino") and recipe["device"] == "CPU"
    assert "f32" in str(recipe["options"])


def test_bfloat16_is_refused_where_it_would_silently_be_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_way", lambda: openvino._Way("openvino", ("FP32", "INT8")))
    assert OpenvinoBackend().available() is None
    assert "no bfloat16 arithmetic: OpenVINO offers FP32, INT8" in (bf16().available() or "")
    with pytest.raises(UnavailableError, match="no bfloat16"), bf16().open(Built(MODEL)):
        pass
    monkeypatch.setattr(openvino, "_way", lambda: openvino._Way("openvino", ("FP32", "BF16")))
    assert bf16().available() is None


def test_what_is_missing_comes_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_way", lambda: None)
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    assert OpenvinoBackend().available() == f"OpenVINO is not installed: {openvino.INSTALL}"
    monkeypatch.setattr(openvino, "find_spec", lambda name: object())
    assert "offers no device for this processor" in (OpenvinoBackend().available() or "")
    assert OpenvinoBackend().recipe() == {}


def test_gpus_are_asked_for_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "onnxruntime has no CUDAExecutionProvider here: pip install" in (gpu.GpuBackend().available() or "")
    assert "onnxruntime has no TensorrtExecutionProvider" in (gpu.tensorrt().available() or "")
    with pytest.raises(UnavailableError, match="pip install"), gpu.GpuBackend().open(Built(MODEL)):
        pass
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [gpu.CUDA, gpu.TENSORRT])
    monkeypatch.setattr(gpu, "_gpu", lambda: False)
    assert gpu.GpuBackend().available() == "there is no NVIDIA GPU here, or its driver is not"
    monkeypatch.setattr(gpu, "_gpu", lambda: True)
    assert gpu.GpuBackend().available() is None


def test_the_plugin_of_rtx_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_version", lambda *packages: "")
    assert "pip install onnxruntime-ep-nv-tensorrt-rtx" in (gpu.RtxBackend().available() or "")
    monkeypatch.setattr(gpu, "_version", lambda *packages: "1.0")
    monkeypatch.setattr(gpu, "_rtx", lambda: ())
    assert "needs an NVIDIA GPU" in (gpu.RtxBackend().available() or "")


def test_int8_on_cuda_is_refused_with_the_reason() -> None:
    from optimizer.targets import target

    assert "ort-cuda-int8" in REFUSED and "ort-cuda-int8" not in targets()
    with pytest.raises(UserError, match="no kernels for int8 activations"):
        target("ort-cuda-int8")


@here
def test_int8_runs_in_openvino_as_the_oracle_computes_it(tmp_path: Path) -> None:
    import optimizer

    made = optimizer.optimize(
        MODEL, target="openvino-int8", scheme="inputs", data=str(FOLDER / "calib" / "*.npz"), out=tmp_path / "out",
        threads=1,
    )  # fmt: skip
    file = made.folder / "model.onnx"
    graph = load(file)
    assert sum(node.op == "QuantizeLinear" for node in graph.walk()) > 2
    save(graph, tmp_path / "again.onnx")
    feed = feeds()[0]
    with Evaluate(1).open(graph) as oracle, OpenvinoBackend().open(Built(file), 1) as session:
        expected, got = oracle(feed), session.run(feed)
    for name, array in expected.items():
        noise = float(((got[name] - array) ** 2).sum())
        assert 10 * np.log10(float((array**2).sum()) / max(noise, 1e-30)) > 20, name
