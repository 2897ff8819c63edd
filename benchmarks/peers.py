"""Today's tools on the same model and the same calibration feeds, each as a user would run it.

ort-defaults   onnxruntime.quantization.quantize_static as it comes
ort-tuned      the same after its own pre-processing: u8 activations, s8 weights, per channel
ort-dynamic    onnxruntime.quantization.quantize_dynamic, s8 weights, per channel
nncf           nncf.quantize as it comes, where the package is installed
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optimizer.evaluate import Feeds


def all_variants(source: Path, feeds: Sequence[Feeds], folder: Path, failed: dict[str, str]) -> dict[str, Path]:
    """Files by peer; a peer that fails is noted in `failed` with its reason and left out."""
    made: dict[str, Path] = {}
    for name, build in PEERS.items():
        path = folder / f"{name}.onnx"
        try:
            with quiet():
                build(source, feeds, path)
            made[name] = path
        except Exception as error:  # a peer's failure is a result here, whatever its type
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


class Reader:
    """Feeds as ONNX Runtime's quantizer wants them: one at a time, None at the end."""

    def __init__(self, feeds: Sequence[Feeds]):
        self.feeds = iter(feeds)

    def get_next(self) -> Feeds | None:
        return next(self.feeds, None)


def ort_defaults(source: Path, feeds: Sequence[Feeds], path: Path) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(source, path, Reader(feeds))


def ort_tuned(source: Path, feeds: Sequence[Feeds], path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    except Exception:  # its pre-processing refuses some real models; the quantizer alone may still do
        prepared = source
    quantize_static(
        prepared, path, Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def ort_dynamic(source: Path, feeds: Sequence[Feeds], path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, path, per_channel=True, weight_type=QuantType.QInt8)


def nncf(source: Path, feeds: Sequence[Feeds], path: Path) -> None:
    import nncf as tool
    import onnx

    data: Any = tool.Dataset(list(feeds))
    onnx.save(tool.quantize(onnx.load(source), data, subset_size=len(feeds)), path)


PEERS: dict[str, Callable[[Path, Sequence[Feeds], Path], None]] = {
    "ort-defaults": ort_defaults,
    "ort-tuned": ort_tuned,
    "ort-dynamic": ort_dynamic,
    "nncf": nncf,
}
