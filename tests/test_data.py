"""Feeds: every kind of source is read as it says, split, checked at once, streamed and digested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import tiny
from optimizer import data
from optimizer.data import Data, open_data, split
from optimizer.errors import DataError
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph
from optimizer.images import parse
from optimizer.io import load
from tests.conftest import make

TWO = "g (float[N,3] a, int64[N] b) => (float[N,3] y) { c = Cast<to=1>(b) d = Unsqueeze(c, one) y = Add(a, d) }"
PICTURE = "g (float[N,3,8,8] image) => (float[N,3,8,8] y) { y = Relu(image) }"


@pytest.fixture
def two() -> Graph:
    return make(TWO.replace("=> (float[N,3] y) {", "=> (float[N,3] y) <int64[1] one = {1}> {"))


@pytest.fixture
def relu() -> Graph:
    return make("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")


def feeds_of(found: Data) -> list[dict[str, np.ndarray]]:
    return [*found.calibration, *found.check]


def write(folder: Path, count: int, **change: object) -> None:
    for number in range(count):
        feed = {"a": np.full((2, 3), number, np.float32), "b": np.arange(2)} | change
        np.savez(folder / f"{number:03}.npz", **{k: v for k, v in feed.items() if v is not None})


def opened(given: data.Given | None, graph: Graph, **options: object) -> Data:
    return open_data(given, graph, Evaluate(threads=1), **options)  # type: ignore[arg-type]  # test table


@pytest.mark.parametrize(
    ("count", "held"),
    [(1, (0,)), (2, (1,)), (3, (2,)), (4, (3,)), (8, (3, 7)), (16, (3, 7, 11, 15))],
)
def test_every_fourth_feed_is_held_out(count: int, held: tuple[int, ...]) -> None:
    calibration, check = split(count)
    assert check == held
    assert set(calibration) == (set(range(count)) - set(held) or {0})


def test_at_most_32_are_held_out() -> None:
    calibration, held = split(1000)
    assert len(held) <= 32
    assert len(calibration) + len(held) == 1000


def test_npz_pattern(tmp_path: Path, two: Graph) -> None:
    write(tmp_path, 8)
    found = opened(f"{tmp_path}/*.npz", two)
    assert [int(f["a"][0, 0]) for f in found.calibration] == [0, 1, 2, 4, 5, 6]
    assert [int(f["a"][0, 0]) for f in found.check] == [3, 7]
    assert not found.synthetic


def test_a_folder_of_npz_is_its_pattern(tmp_path: Path, two: Graph) -> None:
    write(tmp_path, 5)
    assert opened(tmp_path, two).digest == opened(f"{tmp_path}/*.npz", two).digest


def test_npy_files_feed_the_only_input(tmp_path: Path, relu: Graph) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 3), np.float32))
    (feed,) = opened(f"{tmp_path}/*.npy", relu).check
    assert list(feed) == ["x"]


def test_function_is_called_anew_for_each_reading(tmp_path: Path, relu: Graph) -> None:
    (tmp_path / "rows.py").write_text("ROWS = 8")
    (tmp_path / "feeds.py").write_text(
        "import numpy as np\nfrom rows import ROWS\n"
        "def make():\n    for i in range(ROWS):\n        yield {'x': np.full((1, 3), i, np.float32)}\n"
    )
    found = opened(f"{tmp_path}/feeds.py:make", relu)
    first = [int(f["x"][0, 0]) for f in found.calibration]
    assert first == [int(f["x"][0, 0]) for f in found.calibration] == [0, 1, 2, 4, 5, 6]


def test_lists_and_functions_through_the_api(relu: Graph) -> None:
    rows = [{"x": np.zeros((1, 3), np.float32)}] * 3
    assert opened(rows, relu).digest == opened(lambda: iter(rows), relu).digest


def test_an_iterator_is_refused(relu: Graph) -> None:
    with pytest.raises(DataError, match="only once"):
        opened(iter([]), relu)  # type: ignore[arg-type]  # that is the point


def test_feeds_are_streamed(tmp_path: Path, two: Graph) -> None:
    write(tmp_path, 8)
    found = opened(f"{tmp_path}/*.npz", two)
    for path in sorted(tmp_path.glob("*.npz"))[1:]:
        path.unlink()
    assert next(iter(found.calibration))["a"][0, 0] == 0


def test_headers_of_all_files_are_seen_before_any_is_read(tmp_path: Path, two: Graph) -> None:
    write(tmp_path, 5, a=np.full((2, 3), np.nan, np.float32))
    np.savez(tmp_path / "last.npz", a=np.zeros((2, 4), np.float32), b=np.arange(2))
    with pytest.raises(DataError, match=r"last.npz.*axis 1 must be 3"):
        opened(f"{tmp_path}/*.npz", two)


def test_digest_tells_order_values_and_names(relu: Graph) -> None:
    zeros, ones = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    digests = {opened([{"x": a}, {"x": b}], relu).digest for a, b in [(zeros, ones), (ones, zeros), (ones, ones)]}
    assert len(digests) == 3


def test_random_is_seeded(relu: Graph) -> None:
    assert opened("random:4", relu).digest == opened("random:4", relu).digest
    assert opened("random:4", relu).digest != opened("random:4", relu, seed=1).digest
    assert len(feeds_of(opened("random:5", relu))) == 5


def test_no_data_is_sixteen_random_feeds(relu: Graph) -> None:
    found = opened(None, relu)
    assert found.synthetic
    assert found.source == "random:16"
    assert found.sizes == {"N": 1}


def test_random_integers_stay_inside_the_table_they_index() -> None:
    text = """g (int64[N,T] ids, int64[N,T] mask) => (float[N,T,4] y) <float[7,4] table = {0,0,0,0,1,1,1,1,2,2,2,2,
        3,3,3,3,4,4,4,4,5,5,5,5,6,6,6,6}> { same = Identity(ids) e = Gather(table, same)
        m = Cast<to=1>(mask) last = Constant<value_ints=[-1]>() u = Unsqueeze(m, last) y = Mul(e, u) }"""
    feeds = feeds_of(opened("random:8", make(text)))
    assert {int(v) for f in feeds for v in f["ids"].flat} == set(range(7))
    assert {int(v) for f in feeds for v in f["mask"].flat} == {0, 1}


def test_random_integers_take_the_values_they_are_compared_with() -> None:
    text = """g (int64 rate, float[N] x) => (float[N] y) { hi = Constant<value=int64 {16000}>() c = Equal(rate, hi)
        f = Cast<to=1>(c) y = Mul(x, f) }"""
    assert {int(f["rate"]) for f in feeds_of(opened("random:4", make(text)))} == {16000}


def test_random_finds_a_size_that_runs() -> None:
    text = """g (float[N,L] x, float[2,M,1] state) => (float[N,32] y) { s = Constant<value_ints=[-1, 32]>()
        z = Reshape(x, s) two = Constant<value_ints=[2, 1]>() one = Reshape(state, two) t = ReduceSum<keepdims=0>(one)
        y = Add(z, t) }"""
    sizes = opened("random:1", make(text)).sizes
    assert sizes["M"] == 1
    assert sizes["L"] % 32 == 0


@pytest.mark.parametrize("name", sorted(set(tiny.ALL) - tiny.UNRUNNABLE - {"sequence_ops"}))
def test_random_runs_every_tiny_model(name: str) -> None:
    assert len(opened("random:2", load(tiny.ALL[name]())).calibration) >= 1


def picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    Image = pytest.importorskip("PIL.Image")
    Image.new("RGB", size, colour).save(path)


def test_pictures_with_the_imagenet_preset(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (300, 400), (255, 0, 51))
    graph = make(PICTURE.replace("8,8", "224,224"))
    (feed,) = opened(tmp_path, graph, preprocess="imagenet").check
    expected = (np.array([1, 0, 0.2]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert feed["image"].shape == (1, 3, 224, 224)
    assert np.allclose(feed["image"], expected[None, :, None, None], atol=1e-6)


def test_pictures_by_options(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (16, 12), (10, 20, 30))
    graph = make("g (float[N,8,6,3] image) => (float[N,8,6,3] y) { y = Relu(image) }")
    text = "layout=nhwc colour=bgr scale=1 mean=10,10,10 std=2 crop=none"
    (feed,) = opened(tmp_path, graph, preprocess=text).check
    assert feed["image"].shape == (1, 8, 6, 3)
    assert np.array_equal(feed["image"][0, 0, 0], [10, 5, 0])


def test_centre_crop_takes_the_middle(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (feed,) = opened(tmp_path, make(PICTURE), preprocess="size=8 scale=255").check
    assert np.array_equal(feed["image"], np.ones((1, 3, 8, 8), np.float32))


def test_whole_number_inputs_get_rounded_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (8, 8), (1, 2, 3))
    graph = make("g (uint8[N,3,8,8] image) => (uint8[N,3,8,8] y) { y = Identity(image) }")
    (feed,) = opened(tmp_path, graph, preprocess="scale=1").check
    assert feed["image"].dtype == np.uint8
    assert list(feed["image"][0, :, 0, 0]) == [1, 2, 3]


def test_presets_can_be_changed() -> None:
    assert parse("imagenet colour=bgr size=48x192").size == (48, 192)
    assert parse("imagenet colour=bgr").colour == "bgr"
    assert parse("imagenet").mean == (0.485, 0.456, 0.406)
