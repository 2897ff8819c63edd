"""Sentence embeddings: Debian's package descriptions, told apart by archive section through their neighbours.

The sample follows this machine's package lists: the same lists give the same sample, other lists a like one.
"""

import functools
import random
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.fetch import ZooError
from models.tasks.base import Feeds, Samples, Split, Verdict

SECTIONS = (
    *("games", "fonts", "math", "sound", "video", "mail", "editors", "science"),
    *("electronics", "database", "web", "graphics", "hamradio", "news", "education", "admin"),
)
PER_SECTION = 90
BATCH = {"evaluation": 32, "calibration": 4}
NEIGHBOURS = 7
TOKENS = 48
CLS, SEP = 101, 102


@dataclass(frozen=True)
class _Texts:
    mask: np.ndarray  # int64 [n, tokens]
    sections: list[str]


@functools.cache
def _descriptions() -> dict[str, list[str]]:
    """Descriptions by section, sorted. Raises ZooError where apt keeps no package lists."""
    try:
        command = ["apt-cache", "dumpavail"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ZooError(f"package descriptions come from apt-cache, on Debian or Ubuntu: {error}") from error
    found: dict[str, set[str]] = {section: set() for section in SECTIONS}
    for package in text.split("\n\n"):
        section = re.search(r"^Section: (\S+)", package, re.M)
        description = re.search(r"^Description(?:-en)?: (.+)", package, re.M)
        if section and description and section.group(1) in found:
            found[section.group(1)].add(description.group(1))
    if not all(found.values()):
        raise ZooError("apt-cache lists too few packages: run 'apt-get update' first")
    return {section: sorted(texts) for section, texts in found.items()}


def _sample(split: Split) -> list[tuple[str, str]]:
    """Description and section: the first ninety of each section to evaluate, the next ninety to calibrate."""
    pick, chosen = random.Random(101), list[tuple[str, str]]()
    first = 0 if split == "evaluation" else PER_SECTION
    for section, texts in _descriptions().items():
        shuffled = texts.copy()
        pick.shuffle(shuffled)
        chosen += [(text, section) for text in shuffled[first : first + PER_SECTION]]
    pick.shuffle(chosen)
    return chosen


@functools.cache
def _tokenizer() -> int:
    try:
        import blingfire
    except ImportError as error:
        raise ZooError("MiniLM's tokenizer is not here: pip install blingfire==0.1.8") from error
    handle: int = blingfire.load_model(str(Path(blingfire.__file__).parent / "bert_base_tok.bin"))
    return handle


def _encode(texts: list[str], limit: int = TOKENS) -> Feeds:
    """Ids of bert-base-uncased and their mask, int64 [n, tokens of the longest], cut at `limit` tokens."""
    tokenizer = _tokenizer()
    import blingfire

    rows = []
    for text in texts:
        found = blingfire.text_to_ids(tokenizer, text.lower(), limit - 2, 100)
        rows.append([CLS, *(int(number) for number in found if number), SEP])
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def _batches(split: Split) -> Iterator[tuple[Feeds, _Texts]]:
    sample, size = _sample(split), BATCH[split]
    for start in range(0, len(sample), size):
        texts, sections = zip(*sample[start : start + size], strict=True)
        feeds = _encode(list(texts))
        yield feeds, _Texts(feeds["attention_mask"], list(sections))


def _judge(results: Iterable[tuple[list[np.ndarray], _Texts]]) -> Verdict:
    """The second half of the texts, each by the vote of its nearest in the first half, by cosine."""
    embeddings, sections = [], list[str]()
    for outputs, texts in results:
        tokens = next(output for output in outputs if output.dtype == np.float32 and output.ndim == 3)
        mask = texts.mask[:, :, None]
        embeddings.append((tokens * mask).sum(1) / mask.sum(1))
        sections += texts.sections
    vectors = np.concatenate(embeddings)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    half = len(vectors) // 2
    known = np.array(sections[:half])
    right = [_vote(vectors[:half] @ v, known) == s for v, s in zip(vectors[half:], sections[half:], strict=True)]
    return Verdict(float(np.mean(right)), {"texts": len(vectors)})


def _vote(similarity: np.ndarray, sections: np.ndarray) -> str:
    votes: dict[str, float] = {}
    for index in similarity.argsort()[::-1][:NEIGHBOURS]:
        votes[sections[index]] = votes.get(sections[index], 0.0) + float(similarity[index])
    return max(votes, key=lambda section: votes[section])


def _timed() -> Feeds:
    """One row of 64 tokens: several descriptions in a row."""
    text = " ".join(text for text, _ in _sample("calibration")[:20])
    return _encode([text], limit=64)


BATCHES = -(-PER_SECTION * len(SECTIONS) // BATCH["evaluation"])
TASKS = {"minilm-l3": Samples("7-NN top-1, package description to section", BATCHES, _batches, _judge, _timed)}
