"""Speech or not, frame by frame: real telephone prompts between silences, with noise laid over them.

A frame's truth is its loudness before the noise; a model gets frame after frame, its state carried along.
"""

import itertools
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from models.tasks.base import Feeds, Run, Score, Split, arrays, open_ort
from models.tasks.drawing import Chance
from models.zoo import folder, path

CLIPS = 60
CLIP_RATE = 8000
SILENCE_RMS = 10 ** (-42 / 20)
NOISE_DB = -10
SETTLED = 9  # frames: shorter gaps inside speech count as speech


@dataclass(frozen=True)
class Speech:
    """Frame AUC of a streaming detector, the lowest over its sample rates.

    `states` are its state inputs with shapes, in the order of its further outputs; `frames` go in one run.
    """

    model: str
    states: Mapping[str, tuple[int, ...]]
    rates: tuple[int, ...] = (16000,)
    sends_rate: bool = False
    frames: int = 1

    @property
    def metric(self) -> str:
        return f"frame AUC at 10 dB, {' and '.join(str(rate // 1000) for rate in self.rates)} kHz"

    def calibration(self, count: int) -> list[Feeds]:
        """Frames spread over clips that the evaluation has not, with the states the model itself comes to."""
        run = open_ort(path(self.model), threads=1)
        wanted = -(-count // len(self.rates))
        rounds = zip(*(self._spread(run, rate, wanted) for rate in self.rates), strict=True)
        return [feeds for feeds_of_each_rate in rounds for feeds in feeds_of_each_rate][:count]

    def typical(self) -> Feeds:
        return self.calibration(2)[-1]

    def evaluate(self, run: Run, limit: int | None = None) -> Score:
        """`limit` is the number of frames at each rate."""
        scores, count = dict[str, float](), 0
        for rate in self.rates:
            signal, truth = _scene("evaluation", rate)
            signal = signal[: len(_windows(signal, rate)[:limit]) * _frame(rate)]
            heard = np.concatenate([probability for _, probability in self._stream(run, signal, rate)])
            scores[f"AUC at {rate} Hz"] = area_under_curve(heard, truth[: len(heard)])
            count += len(heard)
        return Score(self.metric, min(scores.values()), count, scores)

    def _spread(self, run: Run, rate: int, count: int) -> list[Feeds]:
        signal, _ = _scene("calibration", rate)
        every = [feeds for feeds, _ in self._stream(run, signal, rate)]
        if len(every) < count:
            raise ValueError(f"{self.model}: {count} inputs at {rate} Hz asked for, {len(every)} can be had")
        return [every[place] for place in np.linspace(0, len(every) - 1, count).astype(int)]

    def _stream(self, run: Run, signal: np.ndarray, rate: int) -> Iterator[tuple[Feeds, np.ndarray]]:
        """Each run's inputs and the probabilities of its frames, the state carried from run to run."""
        state = {name: np.zeros(shape, np.float32) for name, shape in self.states.items()}
        windows = _windows(signal, rate)
        for start in range(0, len(windows) - self.frames + 1, self.frames):
            feeds = {"input": windows[start : start + self.frames], **state}
            if self.sends_rate:
                feeds["sr"] = np.array(rate, np.int64)
            probability, *after = arrays(run(feeds))
            state = dict(zip(self.states, after, strict=True))
            yield feeds, probability.reshape(-1)


def area_under_curve(scores: np.ndarray, truth: np.ndarray) -> float:
    """Chance that a true sample scores above a false one (Mann & Whitney 1947)."""
    ranks = scores.argsort().argsort()
    true, false = int(truth.sum()), int((~truth).sum())
    return float((ranks[truth].sum() - true * (true - 1) / 2) / (true * false))


def _frame(rate: int) -> int:
    return 512 * rate // 16000


def _windows(signal: np.ndarray, rate: int) -> np.ndarray:
    """Frames of 32 ms, each behind the last 4 ms of the one before: float32 [n, 576] at 16 kHz."""
    size = _frame(rate)
    context = size // 8
    padded = np.concatenate([np.zeros(context, np.float32), signal])
    count = len(signal) // size
    return np.stack([padded[i * size : i * size + context + size] for i in range(count)])


def _scene(split: Split, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy recording, float32 from -1 to 1, and whether each frame holds speech, bool [frames]."""
    from scipy.signal import resample_poly

    clean = _clips(split)
    if rate != CLIP_RATE:
        clean = resample_poly(clean, rate // CLIP_RATE, 1).astype(np.float32)
    size = _frame(rate)
    frames = clean[: len(clean) // size * size].reshape(-1, size)
    window = np.ones(SETTLED)
    loud = np.sqrt((frames**2).mean(1)) > SILENCE_RMS
    near = np.convolve(loud, window, "same") > 0
    speech = np.convolve(near, window, "same") >= SETTLED
    noise = np.random.default_rng(101).standard_normal(frames.size).astype(np.float32)
    level = np.sqrt((frames[speech] ** 2).mean()) * 10 ** (NOISE_DB / 20)
    return (frames.reshape(-1) + noise * level).astype(np.float32), speech


def _clips(split: Split) -> np.ndarray:
    """Sixty spoken prompts, each after a silence of .4 to 2 s; those to calibrate with are others."""
    chance = Chance(100)
    files = sorted(folder("speech").iterdir())
    chance.pick.shuffle(files)
    spoken = (s for file in files if "tone" not in file.name and "beep" not in file.name for s in _sound(file.name))
    first = 0 if split == "evaluation" else CLIPS
    parts: list[np.ndarray] = []
    for sound in itertools.islice(spoken, first, first + CLIPS):
        parts += [np.zeros(int(chance.generator.uniform(0.4, 2.0) * CLIP_RATE), np.float32), sound]
    return np.concatenate(parts)


def _sound(name: str) -> Iterator[np.ndarray]:
    """The samples of one file, if it lasts a second or longer."""
    with wave.open(str(folder("speech") / name)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    if len(samples) >= CLIP_RATE:
        yield samples.astype(np.float32) / 32768


_STATE = {"state": (2, 1, 128)}
TASKS = {
    "silero-vad": Speech("silero-vad", _STATE, (8000, 16000), sends_rate=True),
    "silero-vad-ifless": Speech("silero-vad-ifless", _STATE, sends_rate=True),
    "silero-vad-openvino": Speech("silero-vad-openvino", _STATE),
    "silero-vad-sequence": Speech("silero-vad-sequence", {"h": (1, 1, 128), "c": (1, 1, 128)}, frames=32),
}
