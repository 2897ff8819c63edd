"""What a graph costs as a function of what is kept: multiply-accumulates, parameters, or measured latency.

A cost is a sum of parts, one or two a node; a part depends on few atoms, so that one step of the search touches few
parts. Multiply-accumulates and parameters are products of widths; latency is looked up in a table measured on the
target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from platformdirs import user_cache_path

from optimizer.context import Context
from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.inspect import macs, sized, usual_shapes
from optimizer.ops import MULTIPLY
from optimizer.shapes import static
from passes.prune.atoms import Atom, Term, count
from passes.prune.coupling import Coupling, free
from passes.prune.latency import Table
from passes.prune.widths import Layer

Counts = Callable[[Atom], float]
FUSED = ("Relu",)  # what the runtime computes in a convolution's own kernel


@dataclass(frozen=True)
class Part:
    """One summand: `value` of the numbers of indices that its atoms keep."""

    node: str
    atoms: tuple[Atom, ...]
    value: Callable[[Counts], float]


@dataclass
class Cost:
    """The sum, kept up to date while atoms shrink. `whole` is what it was before."""

    parts: Sequence[Part]
    counts: dict[Atom, int] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)
    readers: dict[Atom, list[int]] = field(default_factory=dict)
    whole: float = 0.0
    total: float = 0.0

    def __post_init__(self) -> None:
        """Finds out which parts an atom is in."""
        for place, part in enumerate(self.parts):
            for atom in part.atoms:
                self.readers.setdefault(atom, []).append(place)
                self.counts[atom] = atom.size
        self.values = [part.value(self.counted) for part in self.parts]
        self.whole = self.total = math.fsum(self.values)

    def counted(self, atom: Atom) -> float:
        return self.counts.get(atom, atom.size)

    def saving(self, atom: Atom, left: int) -> float:
        """What is saved where the atom keeps `left` indices instead of what it has now."""
        before = self.counts[atom]
        self.counts[atom] = left
        saved = math.fsum(self.values[i] - self.parts[i].value(self.counted) for i in self.readers[atom])
        self.counts[atom] = before
        return saved

    def reduce(self, atom: Atom, left: int) -> None:
        self.counts[atom] = left
        for i in self.readers[atom]:
            value = self.parts[i].value(self.counted)
            self.total += value - self.values[i]
            self.values[i] = value


def atoms_of(terms: Iterable[Term | None]) -> tuple[Atom, ...]:
    return tuple(dict.fromkeys(atom for term in terms if term is not None for atom in free(term)))


def parameters(coupling: Coupling) -> list[Part]:
    """One part a constant: its number of elements."""
    found = []
    for constant in coupling.graph.constants().values():
        terms = coupling.axes.get(constant.name)
        if terms and constant.dtype is not None:
            found.append(_product(constant.name, 1.0, terms, constant.shape))
    return found


def multiplications(coupling: Coupling, ctx: Context) -> list[Part]:
    """MACs of every operator that `optimize inspect` counts, for the first calibration feed's sizes."""
    graph = coupling.graph
    twin = sized(graph, sizes(graph, ctx))
    twins = {node.name: node for node in twin.nodes}
    found = []
    for node in graph.nodes:
        if node.domain or node.op not in MULTIPLY:
            continue
        work = macs(twin, twins[node.name]) if node.name in twins else None
        for weight, tensors in _widths(coupling, node):
            terms = [coupling.term(t, axis) for t, axis in tensors]
            dims = [term.size if term is not None else 1 for term in terms]
            share = weight * (math.prod(dims) if work is None else work)
            found.append(_product(node.name, share / max(1, math.prod(dims)), terms, dims))
    return found


def latencies(coupling: Coupling, ctx: Context, multiple: int) -> list[Part]:
    """Measured seconds of every operator with weights, from a table of this machine's that is kept between runs.

    Products of two activations count too: they shrink with the heads.
    """
    graph, known = coupling.graph, shapes(coupling.graph, ctx)
    table = Table(ctx.evaluate.threads, user_cache_path("onnx-optimize") / "latency", ctx.progress)
    layers: list[tuple[Node, Layer]] = []
    for node in graph.nodes:
        if not node.domain and node.op in MULTIPLY and (layer := _layer(graph, node, known)) is not None:
            layers.append((node, layer))
    table.measure([layer for _, layer in layers], multiple)
    return [_timed(coupling, table, node, layer) for node, layer in layers]


def _layer(graph: Graph, node: Node, known: Mapping[str, tuple[int, ...] | None]) -> Layer | None:
    """None where a size is not known."""
    dims = [known.get(t.name, static(t)) if t.name else None for t in node.inputs]
    if any(t.name and d is None for t, d in zip(node.inputs, dims, strict=True)):
        return None
    attrs = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in node.attrs.items()))
    made = node.outputs[0]
    after = made.outputs[0].op if len(made.outputs) == 1 and made.outputs[0].op in FUSED and node.op == "Conv" else ""
    constant = tuple(isinstance(t, Constant) for t in node.inputs)
    return Layer(node.op, attrs, graph.opset, tuple(dims), constant, after)


def _timed(coupling: Coupling, table: Table, node: Node, layer: Layer) -> Part:
    terms = [
        [coupling.term(t, axis) for axis in range(len(d or ()))] for t, d in zip(node.inputs, layer.shapes, strict=True)
    ]

    def seconds(counts: Counts) -> float:
        now = tuple(
            None
            if dims is None
            else tuple(d if t is None else round(count(t, counts)) for d, t in zip(dims, axes, strict=True))
            for dims, axes in zip(layer.shapes, terms, strict=True)
        )
        return table.seconds(layer, now)

    return Part(node.name, atoms_of(t for axes in terms for t in axes), seconds)


def sizes(graph: Graph, ctx: Context) -> Mapping[str, Sequence[int]]:
    """Input shapes to count for: those of the first feed, else the usual ones."""
    for feed in ctx.batches:
        return {name: array.shape for name, array in feed.items()}
    return usual_shapes(graph)


def shapes(graph: Graph, ctx: Context) -> dict[str, tuple[int, ...] | None]:
    """Static shapes of all tensors, by name, at these sizes."""
    twin = sized(graph, sizes(graph, ctx))
    return {name: static(tensor) for name, tensor in twin.tensors().items()}


def _product(node: str, scale: float, terms: Sequence[Term | None], dims: Sequence[int]) -> Part:
    """Scale times the widths of all terms; what cannot change is part of the scale."""
    wide = [term for term in terms if term is not None and free(term)]
    fixed = [d for term, d in zip(terms, dims, strict=True) if term is None or not free(term)]
    factor = scale * math.prod(fixed)
    return Part(node, atoms_of(wide), lambda counts: factor * math.prod(count(term, counts) for term in wide))


def _widths(c: Coupling, node: Node) -> list[tuple[float, list[tuple[Tensor, int]]]]:
    """(share of the node's MACs, the axes whose sizes it is a product of)."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if node.op == "Conv":
        return [(1.0, [(y, 1), (w, 1)])]
    if node.op == "ConvTranspose":
        return [(1.0, [(x, 1), (w, 1)])]
    if node.op in ("Gemm", "MatMul"):
        place = next(p for p in [*c.contractions, None] if p is None or p.node == node.name)
        if place is None or (made := c.of(y)) is None:
            return [(1.0, [])]
        return [(1.0, [*((y, axis) for axis in range(len(made))), (x, place.axis)])]
    r = node.inputs[2]
    both = [math.prod(t.shape) if isinstance(t, Constant) else 1 for t in (w, r)]
    return [(n / sum(both), [(t, 1), (t, 2)]) for t, n in zip((w, r), both, strict=True)]
