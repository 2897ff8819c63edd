"""Latency tables: exact at what was measured, monotone between, and kept for the next run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from optimizer.evaluate import session
from passes.prune.latency import ROUNDS, Grid, Table, model
from passes.prune.widths import Layer, Shapes, axes, narrower, sizes


def conv(
    inputs: int, outputs: int, size: int, kernel: int = 3, group: int = 1, op: str = "Conv", then: str = ""
) -> Layer:
    pads = (kernel // 2,) * 4
    weights = (outputs, inputs // group) if op == "Conv" else (inputs, outputs // group)
    shapes = ((1, inputs, size, size), (*weights, kernel, kernel), (outputs,))
    return Layer(op, (("group", group), ("pads", pads)), 17, shapes, (False, True, True), then)


def matmul(a: tuple[int, ...], b: tuple[int, ...], constant: tuple[bool, bool] = (False, True)) -> Layer:
    return Layer("MatMul", (), 17, (a, b), constant)


def recurrent(op: str, gates: int, more: tuple[tuple[int, ...] | None, ...] = ()) -> Layer:
    """Five steps of two sequences, 12 features, 10 hidden units, in both directions."""
    shapes: Shapes = ((5, 2, 12), (2, gates * 10, 12), (2, gates * 10, 10), (2, 2 * gates * 10), *more)
    constant = (False, True, True, True, *(place > 0 for place in range(len(more))))
    return Layer(op, (("direction", "bidirectional"), ("hidden_size", 10)), 17, shapes, constant)


LAYERS = {
    "conv": conv(24, 40, 6),
    "colours": conv(3, 20, 6),
    "no bias": Layer("Conv", (), 11, ((1, 16, 9), (32, 16, 3)), (False, True)),
    "with Clip": conv(16, 32, 6, then="Clip"),
    "with an old Clip": Layer("Conv", (), 9, ((1, 16, 9), (32, 16, 3)), (False, True), "Clip"),
    "depthwise": conv(40, 40, 6, group=40),
    "depthwise, two each": conv(24, 48, 6, group=24),
    "grouped": conv(32, 64, 6, group=4),
    "transposed": conv(16, 24, 6, op="ConvTranspose"),
    "transposed, depthwise": conv(16, 16, 6, group=16, op="ConvTranspose"),
    "transposed, grouped": conv(32, 16, 6, group=4, op="ConvTranspose"),
    "weights as data": Layer("Conv", (), 17, ((1, 16, 9), (32, 16, 3)), (False, False)),
    "product": matmul((2, 7, 32), (32, 48)),
    "vector": matmul((32,), (32, 48)),
    "weights first": matmul((24, 32), (2, 32, 5), (True, False)),
    "heads": matmul((2, 4, 7, 16), (2, 4, 16, 7), (False, False)),
    "one key for all heads": matmul((2, 4, 7, 16), (2, 1, 16, 7), (False, False)),
    "experts": matmul((3, 7, 32), (3, 32, 48)),
    "gemm": Layer("Gemm", (("transB", 1),), 17, ((7, 32), (48, 32), (48,)), (False, True, True)),
    "gemm, transposed data": Layer("Gemm", (("transA", 1),), 17, ((32, 7), (32, 48), (7, 1)), (False, True, True)),
    "gemm, number": Layer("Gemm", (), 17, ((7, 32), (32, 48), ()), (False, True, True)),
    "lstm": recurrent("LSTM", 4, ((2,), (2, 2, 10), (2, 2, 10), (2, 30))),
    "lstm, without lengths": recurrent("LSTM", 4, (None, (2, 2, 10), (2, 2, 10))),
    "gru": recurrent("GRU", 3),
    "rnn": recurrent("RNN", 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_built_at_every_width_and_says_which_it_has(name: str) -> None:
    layer = LAYERS[name]
    grid = axes(layer, 8)
    for free, narrow in zip(itertools.product(*grid), narrower(layer, grid), strict=True):
        assert sizes(layer, narrow.shapes).free == free
        assert narrow.constant == layer.constant and len(narrow.shapes) == len(layer.shapes)
        inferred = onnx.shape_inference.infer_shapes(model(narrow), check_type=True, strict_mode=True)
        onnx.checker.check_model(inferred)
    assert all(points[-1] == size for points, size in zip(grid, sizes(layer, layer.shapes).free, strict=True))


def test_every_kind_of_layer_is_measured() -> None:
    table = Table(1, None, lambda *_: None)
    table.measure(list(LAYERS.values()), 8)
    for layer in LAYERS.values():
        whole = table.seconds(layer, layer.shapes)
        assert 0 < whole < 1
        assert all(
            0 < table.seconds(layer, n.shapes) <= whole for n in narrower(layer, axes(layer, 8)) if same(layer, n)
        )


def same(layer: Layer, narrow: Layer) -> bool:
    """True where leading axes were not merged, as `seconds` wants it."""
    return [s and len(s) for s in narrow.shapes] == [s and len(s) for s in layer.shapes]


def test_heads_are_a_width_of_products_of_activations() -> None:
    halved: Shapes = ((2, 2, 7, 16), (2, 2, 16, 7))
    assert sizes(LAYERS["heads"], LAYERS["heads"].shapes).free == (8, 7, 16, 7)
    assert sizes(LAYERS["heads"], halved).free == (4, 7, 16, 7)


@pytest.mark.parametrize(("size", "expected"), [(64, (16, 32, 48, 64)), (24, (8, 16, 24)), (3, (2, 3)), (1, (1,))])
def test_widths_to_measure(size: int, expected: tuple[int, ...]) -> None:
    assert axes(conv(16, size, 4), 8)[2] == expected
    assert len(axes(conv(16, size, 4), 16)[2]) == len(expected)


def test_widths_are_multiples_of_what_the_target_wants() -> None:
    assert axes(conv(16, 256, 4), 32)[2] == (64, 128, 192, 256)
    assert axes(conv(16, 96, 4), 32)[2] == (32, 64, 96)


def test_a_model_of_a_layer_makes_what_the_layer_makes() -> None:
    layer = conv(8, 12, 6, group=4, then="Clip")
    feeds = {"x0": np.ones((1, 8, 6, 6), np.float32)}
    (y,) = session(model(layer).SerializeToString(), threads=1).run(None, feeds)
    assert y.shape == (1, 12, 6, 6) and y.min() >= 0


def test_a_grid_is_exact_at_its_points_and_for_products_of_widths() -> None:
    def seconds(a: float, b: float) -> float:
        return 1e-3 + 2e-5 * a + 3e-5 * b + 4e-6 * a * b

    points = ((16, 32, 64), (8, 24))
    grid = Grid.through(points, np.array([[seconds(a, b) for b in points[1]] for a in points[0]]))
    for a, b in [*itertools.product(*points), (20, 8), (48, 23), (63, 9), (4, 2), (0, 24)]:
        assert grid.at((a, b)) == pytest.approx(seconds(a, b))
    assert grid.at((100, 24)) == grid.at((64, 24))


def test_noise_and_steep_lines_do_not_make_less_work_cost_more_or_nothing() -> None:
    grid = Grid.through(((8, 16, 32),), np.array([1e-3, 5e-3, 4e-3]))
    found = [grid.at((width,)) for width in range(33)]
    assert all(0 < a <= b for a, b in itertools.pairwise(found))
    assert found[32] == 4e-3 and found[16] == 4e-3


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table, Layer, Layer]:
    """A convolution and a product, measured once with one thread."""
    folder = tmp_path_factory.mktemp("timings")
    big, product = conv(96, 128, 28), matmul((1, 64, 256), (256, 256))
    table = Table(1, folder, lambda *_: None)
    table.measure([big, product], 16)
    return folder, table, big, product


def test_half_the_width_is_faster_and_less_never_slower(measured: tuple[Path, Table, Layer, Layer]) -> None:
    _, table, big, product = measured
    whole = table.seconds(big, big.shapes)
    for narrow in (conv(48, 128, 28), conv(96, 64, 28)):
        assert table.seconds(big, narrow.shapes) < 0.8 * whole
    assert table.seconds(big, conv(48, 64, 28).shapes) < 0.5 * whole
    inputs = [table.seconds(big, conv(n, 128, 28).shapes) for n in range(2, 97)]
    columns = [table.seconds(product, ((1, 64, 256), (256, n))) for n in range(1, 257)]
    for line in (inputs, columns):
        assert all(0 < a <= b for a, b in itertools.pairwise(line))


def test_a_table_gives_back_what_it_measured(measured: tuple[Path, Table, Layer, Layer]) -> None:
    folder, table, big, _ = measured
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())["seconds"]
    assert table.seconds(big, big.shapes) == pytest.approx(kept[narrower(big, [(1,), (96,), (128,)])[0].key])
    for narrow in narrower(big, axes(big, 16)):
        assert table.seconds(big, narrow.shapes) <= kept[narrow.key] * (1 + 1e-9)


def test_rows_that_share_weights_count_in_proportion(measured: tuple[Path, Table, Layer, Layer]) -> None:
    _, table, _, product = measured
    half = table.seconds(product, ((1, 32, 256), (256, 256)))
    assert half == pytest.approx(table.seconds(product, product.shapes) / 2)


def test_kept_timings_are_not_measured_again(measured: tuple[Path, Table, Layer, Layer]) -> None:
    folder, table, big, product = measured
    again = Table(1, folder, told := Told())
    again.measure([product, big], 16)
    assert not told.steps
    assert again.seconds(big, big.shapes) == table.seconds(big, big.shapes)
    Table(2, folder, told).measure([matmul((4, 16), (16, 16))], 16)
    assert told.steps, "timings of another number of threads were taken"


def test_each_point_is_measured_once() -> None:
    table = Table(1, None, told := Told())
    layer = matmul((4, 32), (32, 32))
    table.measure([layer, layer, matmul((4, 16), (16, 32))], 16)
    points = 4 + 4 - 2  # widths {16, 32}^2, and {8, 16} x {16, 32}, of which two are in both
    assert told.steps == [(done, ROUNDS * points) for done in range(ROUNDS * points)]


DAMAGED = ["", "{", "[]", "null", '{"seconds": 3}', '{"machine": {}, "seconds": {"x": 1}}', '{"seconds": {"x": "a"}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_timings_are_measured_again_and_replaced(tmp_path: Path, text: str) -> None:
    layer = matmul((2, 4), (4, 4))
    Table(1, tmp_path, lambda *_: None).measure([layer], 1)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    Table(1, tmp_path, told := Told()).measure([layer], 1)
    assert told.steps and list(tmp_path.iterdir()) == [file]
    assert layer.key in json.loads(file.read_text())["seconds"]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    table = Table(1, tmp_path / "file" / "folder", lambda *_: None)
    layer = matmul((2, 4), (4, 4))
    table.measure([layer], 1)
    assert table.seconds(layer, layer.shapes) > 0
    assert "cannot write" in caplog.text


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps.append((done, total))
