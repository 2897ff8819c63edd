"""Trains the Fashion-MNIST network; writes what this folder commits: model, calibration feeds, test images.

    python -m models.fashion.train [--data FOLDER] [--epochs 9] [--threads 2]

Needs torch (only here). Calibration feeds come from training images, accuracy from test images.
"""

import argparse
import gzip
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from torch.nn import functional

from models.fashion.network import EPSILON, network, to_onnx

FOLDER = Path(__file__).parent
CALIBRATION_FILES, CALIBRATION_BATCH = 16, 4
TEST_IMAGES_PER_CLASS = 100
log = logging.getLogger("fashion")


class TorchOperators:
    """Runs each operator; weights are made on first use: one forward pass creates the whole network."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.training = True

    def conv_norm(
        self, name: str, x: torch.Tensor, channels: tuple[int, int], kernel: int, stride: int
    ) -> torch.Tensor:
        inside, outside = channels
        fan_in = inside * kernel * kernel
        initial = torch.randn(outside, inside, kernel, kernel) * (2 / fan_in) ** 0.5
        weight = self._weight(f"{name}.weight", initial.contiguous(memory_format=torch.channels_last))
        x = functional.conv2d(x, weight, stride=stride, padding=kernel // 2)
        mean = self._weight(f"{name}.norm.mean", torch.zeros(outside), learned=False)
        variance = self._weight(f"{name}.norm.variance", torch.ones(outside), learned=False)
        scale = self._weight(f"{name}.norm.scale", torch.ones(outside))
        bias = self._weight(f"{name}.norm.bias", torch.zeros(outside))
        return functional.batch_norm(x, mean, variance, scale, bias, self.training, momentum=0.1, eps=EPSILON)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def average(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    def linear(self, name: str, x: torch.Tensor, channels: tuple[int, int]) -> torch.Tensor:
        inside, outside = channels
        weight = self._weight(f"{name}.weight", torch.randn(outside, inside) * inside**-0.5)
        bias = self._weight(f"{name}.bias", torch.zeros(outside))
        return functional.linear(x, weight, bias)

    def _weight(self, name: str, initial: torch.Tensor, learned: bool = True) -> torch.Tensor:
        if name not in self.weights:
            self.weights[name] = initial.requires_grad_(learned)
        return self.weights[name]


def read_idx(path: Path) -> np.ndarray:
    """One gzipped IDX file of Fashion-MNIST: images uint8 [n, 28, 28] or labels uint8 [n]."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def as_feed(images: np.ndarray) -> np.ndarray:
    """Images uint8 [n, 28, 28] as the network takes them: float32 [n, 1, 28, 28] from 0 to 1."""
    return images[:, None].astype(np.float32) / 255


def augment(images: torch.Tensor) -> torch.Tensor:
    """Each image mirrored with probability one half; the batch shifted by up to two pixels either way."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))
    down, right = torch.randint(0, 5, (2,)).tolist()
    return functional.pad(mirrored, (2, 2, 2, 2))[:, :, down : down + 28, right : right + 28]


def train(images: np.ndarray, labels: np.ndarray, epochs: int, batch: int = 128) -> TorchOperators:
    """The trained network; images uint8 [n, 28, 28], labels uint8 [n]."""
    op = TorchOperators()
    network(op, torch.zeros(2, 1, 28, 28))
    x, y = torch.from_numpy(as_feed(images)), torch.from_numpy(labels.astype(np.int64))
    learned = [w for w in op.weights.values() if w.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps, pct_start=0.25)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            part = augment(x[chosen]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                scores = network(op, part)
            loss = functional.cross_entropy(scores.float(), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * batch
        log.info("epoch %d of %d: loss %.4f", epoch + 1, epochs, total / len(x))
    op.training = False
    return op


def accuracy(op: TorchOperators, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images uint8 [n, 28, 28] whose highest score is their label."""
    x = torch.from_numpy(as_feed(images))
    with torch.no_grad():
        found = torch.cat([network(op, part).argmax(1) for part in x.split(500)])
    return float((found.numpy() == labels).mean())


def write_samples(train_images: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray) -> None:
    """calib/*.npz, one feed a file, from training images; test.npz, a hundred test images of each class.

    Both are drawn at random, for the data set's first thousand test images are easier than the rest.
    """
    calibration = FOLDER / "calib"
    shutil.rmtree(calibration, ignore_errors=True)
    calibration.mkdir()
    chosen = np.random.default_rng(0).permutation(len(train_images))[: CALIBRATION_FILES * CALIBRATION_BATCH]
    for number, part in enumerate(chosen.reshape(CALIBRATION_FILES, CALIBRATION_BATCH)):
        np.savez_compressed(calibration / f"{number:02d}.npz", image=as_feed(train_images[part]))
    random = np.random.default_rng(0)
    classes = [random.permutation(np.flatnonzero(test_labels == label)) for label in range(10)]
    drawn = np.sort(np.concatenate([places[:TEST_IMAGES_PER_CLASS] for places in classes]))
    np.savez_compressed(FOLDER / "test.npz", images=test_images[drawn], labels=test_labels[drawn])


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--data", type=Path, help="folder of the four .gz files (default: fetched)")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    folder = options.data or _fetched()
    images, labels, test_images, test_labels = (
        read_idx(folder / f"{part}.gz")
        for part in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    )
    op = train(images, labels, options.epochs)
    model = to_onnx({name: weight.detach().numpy() for name, weight in op.weights.items()})
    onnx.save(model, FOLDER / "fashion.onnx")
    write_samples(images, test_images, test_labels)
    log.info("test accuracy on all %d images: %.4f", len(test_images), accuracy(op, test_images, test_labels))


def _fetched() -> Path:
    from models.zoo import folder

    return folder("fashion-mnist")


if __name__ == "__main__":
    main()
