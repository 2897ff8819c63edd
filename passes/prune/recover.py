"""Makes up for what pruning took away, without labels and without training, on calibration data.

Layer by layer in the order of the graph, weights are corrected by least squares: what the original's operator gives
for its own inputs is fitted by what the pruned one has to read, with all that went wrong before it (channel pruning, He
et al. 2017; in order, as GPTQ does it, Frantar et al. 2023). A constant among the inputs moves the mean of what was
removed into the bias. Where a residual sum follows, what is missing on its other side is made up for, too. A
BatchNormalization that is still one gets the mean and variance of its new input. Each step is kept only if the model's
outputs on held-out batches come nearer to the original's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from optimizer.context import Context
from optimizer.errors import ModelError
from optimizer.evaluate import Feeds
from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.shapes import static
from passes.prune.regress import Sums, fit
from passes.prune.replay import Replay
from passes.prune.rows import OPERATORS, Operator, operator
from passes.prune.shrink import Kept
from passes.quantize.sensitivity import scores

log = logging.getLogger(__name__)
EVERY = 4  # of so many batches one is held out
BATCHES = 96
BYTES = 3e9  # of activations held between layers, about
ALIVE = 8  # tensors of the largest size that are held at a time, about
ROWS = 8192  # observations of one layer
WIDEST = 2400  # numbers that an output is a product of; beyond, only the bias is fitted
ADDS = 2  # sums between an operator and the residual one


@dataclass(frozen=True)
class Step:
    """One correction and the noise over signal of the outputs on held-out batches around it."""

    node: str
    kind: str  # weights or statistics
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before


def recover(original: Graph, pruned: Graph, old: Kept, ctx: Context) -> list[Step]:
    """Corrects the weights of `pruned` in place; returns all steps that were tried, none where nothing can be run."""
    batches = _batches(original, ctx)
    if not batches:
        return []
    try:
        work = _Work(original, pruned, old, ctx, batches)
        return [step for step in work.steps() if step is not None]
    except ModelError as error:
        log.info("nothing is recovered: %s", error)
        return []


def strayed(original: Graph, pruned: Graph, ctx: Context) -> float:
    """Noise over signal of the worst float output on held-out batches, as each step is judged by."""
    held = [b for i, b in enumerate(islice(ctx.batches, BATCHES)) if i % EVERY == EVERY - 1] or list(
        islice(ctx.batches, EVERY)
    )
    names = scores(original)
    with ctx.evaluate.open(original, names) as reference, ctx.evaluate.open(pruned, names) as run:
        pairs = [(reference(feeds), run(feeds)) for feeds in held]
    return _noise(pairs)


def _noise(pairs: Sequence[tuple[Feeds, Feeds]]) -> float:
    """Noise over signal of the worst float output over (expected, found) outputs by name."""
    worst = 0.0
    for name in pairs[0][0]:
        arrays = [(np.asarray(r[name]), np.asarray(f[name])) for r, f in pairs]
        if arrays[0][0].dtype.kind != "f":
            continue
        if any(r.shape != f.shape for r, f in arrays):
            return math.inf
        signal = sum(float(np.square(r.astype(np.float64)).sum()) for r, _ in arrays)
        noise = sum(float(np.square(r.astype(np.float64) - f).sum()) for r, f in arrays)
        worst = max(worst, noise / signal if signal else 0.0)
    return worst if math.isfinite(worst) else math.inf


def _batches(graph: Graph, ctx: Context) -> list[Feeds]:
    """Held-out ones first; as many as activations fit into memory."""
    sizes = [math.prod(shape) for t in graph.tensors().values() if (shape := static(t)) and not isinstance(t, Constant)]
    first = next(iter(ctx.batches), None)
    if first is None:
        return []
    known = [max(sizes, default=0), *(array.size for array in first.values())]
    most = max(2, min(BATCHES, int(BYTES / (2 * ALIVE * 4 * max(known)))))
    return list(islice(ctx.batches, most))


class _Work:
    """Both models run side by side up to the operator that is being corrected."""

    def __init__(self, original: Graph, pruned: Graph, old: Kept, ctx: Context, batches: Sequence[Feeds]):
        held = [b for i, b in enumerate(batches) if i % EVERY == EVERY - 1] or list(batches)
        seen = [b for i, b in enumerate(batches) if i % EVERY != EVERY - 1]
        self.pruned, self.old, self.ctx, self.held = pruned, old, ctx, len(held)
        self.names = scores(original)
        with ctx.evaluate.open(original, self.names) as run:
            self.reference = [run(feeds) for feeds in held]
        self.whole = Replay(original, ctx.evaluate, [*held, *seen], self.names)
        self.small = Replay(pruned, ctx.evaluate, [*held, *seen], self.names)
        self.places = {node.name: place for place, node in enumerate(self.whole.nodes)}
        self.rng = np.random.default_rng(ctx.seed)
        self.error = self._error()

    def steps(self) -> Iterator[Step | None]:
        todo = [i for i, node in enumerate(self.small.nodes) if node.op in (*OPERATORS, "BatchNormalization")]
        for done, place in enumerate(todo, 1):
            node = self.small.nodes[place]
            self.small.advance(place)
            self.whole.advance(self.places[node.name])
            yield self._normalise(node) if node.op == "BatchNormalization" else self._correct(node)
            self.ctx.progress("prune: recovery", done, len(todo))

    def _correct(self, node: Node) -> Step | None:
        """Weights and bias of one operator."""
        beside = self._beside(node)
        missing = [self._gap(beside, b) for b in range(len(self.small.alive))] if beside else []
        x, y = node.inputs[0].name, node.outputs[0].name
        self.whole.advance(self.places[node.name] + 1)
        if x not in self.small.alive[0] or y not in self.whole.alive[0]:
            return None
        op = operator(self.pruned, node, self.small.alive[0][x], self.whole.alive[0][y])
        if op is None:
            return None
        fixed = fit(*self._sums(op, x, y, missing), op.bias is not None)
        if fixed is None:
            return None
        before = [
            (one, list(one.inputs)) for one in {id(n): n for n in (node, *([op.bias[0]] if op.bias else []))}.values()
        ]
        weights = op.matrix()
        op.put(weights + fixed.weights if fixed.weights.size else weights, fixed.shift)
        return self._judge(node, "weights", before)

    def _sums(self, op: Operator, x: str, y: str, missing: Sequence[Array | None]) -> tuple[Sums, Sums]:
        """What is missing from the output, against what is read: of the batches to fit, and of those held out."""
        weights = op.matrix()
        groups, inputs, outputs = weights.shape
        wide = inputs > WIDEST
        bias = op.addend()
        sums = [Sums.zero(groups, 0 if wide else inputs, outputs) for _ in range(2)]
        most = max(8, ROWS // len(self.small.alive))
        for number, (mine, theirs) in enumerate(zip(self.small.alive, self.whole.alive, strict=True)):
            goal = self.old.taken(y, theirs[y])
            positions = op.positions(goal)
            at = np.arange(positions)
            if positions > most:
                at = np.sort(self.rng.choice(positions, most, replace=False))
            read = op.inputs(mine[x], goal.shape, at).astype(np.float64)
            left = op.outputs(goal, at) - read @ weights - bias
            if missing and (gap := missing[number]) is not None and gap.shape == goal.shape:
                left = left + op.outputs(gap, at)
            sums[number < self.held].add(read[:, :, :0] if wide else read, left)
        return sums[0], sums[1]

    def _beside(self, node: Node) -> str:
        """The other operand of the sum that follows an operator, where it is known by then; else nothing."""
        made = node.outputs[0]
        for _ in range(ADDS):
            reader = made.outputs[0] if len(made.outputs) == 1 else None
            if reader is None or reader.op != "Add" or self.pruned.is_output(made):
                return ""
            other = reader.inputs[1] if reader.inputs[0] is made else reader.inputs[0]
            if not isinstance(other, Constant):
                known = other.name in self.small.alive[0] and other.name in self.whole.alive[0]
                return other.name if known else ""
            made = reader.outputs[0]
        return ""

    def _gap(self, name: str, batch: int) -> Array | None:
        """How far a tensor is from what is kept of the original's."""
        full, mine = self.old.taken(name, self.whole.alive[batch][name]), self.small.alive[batch][name]
        return full - mine if full.shape == mine.shape else None

    def _normalise(self, node: Node) -> Step | None:
        """Mean and variance move as far as those of the input did on the same data."""
        x = node.inputs[0].name
        constants = [self.pruned.array(t) for t in node.inputs[3:5]]
        if x not in self.small.alive[0] or any(c is None for c in constants):
            return None
        mine = _moments([a[x] for a in self.small.alive[self.held :] or self.small.alive])
        full = _moments([self.old.taken(x, a[x]) for a in self.whole.alive[self.held :] or self.whole.alive])
        mean, variance = (np.asarray(c, np.float64) for c in constants)
        moved = mean + mine[0] - full[0], variance * (mine[1] + 1e-12) / (full[1] + 1e-12)
        if not all(np.isfinite(m).all() for m in moved):
            return None
        before = [(node, list(node.inputs))]
        for position, (values, like) in enumerate(zip(moved, constants, strict=True), 3):
            assert like is not None
            made = self.pruned.constant(values.astype(like.dtype), node.inputs[position].name)
            self.pruned.set_input(node, position, made)
        return self._judge(node, "statistics", before)

    def _judge(self, node: Node, kind: str, before: Sequence[tuple[Node, list[Tensor]]]) -> Step:
        """Keeps what was just changed if the outputs come nearer, else puts back what was there."""
        step = Step(node.name, kind, self.error, self._error())
        if step.kept:
            self.error = step.after
            return step
        for one, inputs in before:
            for position in range(len(one.inputs)):
                self.pruned.set_input(one, position, inputs[position] if position < len(inputs) else None)
        return step

    def _error(self) -> float:
        """Noise over signal of the worst float output on the held-out batches."""
        found = islice(self.small.results(), self.held)
        return _noise(list(zip(self.reference, found, strict=True)))


def _moments(arrays: Sequence[Array]) -> tuple[Array, Array]:
    """Mean and variance of each channel (axis 1), over all arrays."""
    rows = [np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]).astype(np.float64) for a in arrays]
    count = sum(len(r) for r in rows)
    mean = sum(r.sum(0) for r in rows) / count
    return mean, sum(np.square(r).sum(0) for r in rows) / count - np.square(mean)
