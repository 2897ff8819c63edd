"""The dependency graph of pruning: for every axis of every tensor, which indices live or die together.

Each operator says which of its axes are the same (`relations`), the algebra of `atoms` does the rest. An atom that
nothing froze, and that the weights of an operator with multiplications have an axis of, is a group: every index of it
is a unit that can be removed (a channel, a head, a dimension of every head). An operator that nobody described
freezes what it touches; so do the model's interface and the bodies of control flow.

Where an axis is summed over (`contractions`), a removed unit's part of the sum is simply missing; where a statistic
is taken over it (`statistics`: the mean of a LayerNormalization), removing a unit changes what the others become: not
exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.ops import MULTIPLY
from optimizer.shapes import infer
from passes.prune.atoms import Atom, Term, factors, freeze, leaves, split, unify
from passes.shapes.algebra import Expr, number
from passes.shapes.interpret import Interpreter

MOST = 1 << 24  # an axis longer than that is data, not channels


@dataclass(frozen=True)
class Place:
    """One axis of one input of one node."""

    node: str
    position: int
    axis: int


@dataclass
class Coupling:
    """Terms of all axes by tensor name, and what the operators do along them.

    `graph` is what it was made from: nodes named, types and shapes inferred.
    """

    graph: Graph
    facts: Interpreter
    axes: dict[str, list[Term | None]] = field(default_factory=dict)
    contractions: list[Place] = field(default_factory=list)
    statistics: list[Place] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    told: dict[Expr, Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Looks up nodes by name once; an axis that weights are summed over is as long as theirs."""
        self.nodes = {node.name: node for node in self.graph.nodes}
        for node in self.graph.nodes:
            if node.op == "MatMul" and isinstance(weights := node.inputs[1], Constant) and len(weights.shape) > 1:
                for unknown in (self.facts.dims(node.inputs[0]) or [])[-1:]:
                    self.told[unknown] = number(weights.shape[-2])

    # ---------------------------------------------------------------- for relations

    def of(self, tensor: Tensor) -> list[Term | None] | None:
        """The terms of a tensor's axes, None for a size that is not known; None where the rank is not."""
        if tensor.name not in self.axes:
            sizes = self.sizes(tensor)
            if sizes is None:
                return None
            self.axes[tensor.name] = [None if n is None or not 0 < n < MOST else Atom(n) for n in sizes]
        return self.axes[tensor.name]

    def sizes(self, tensor: Tensor) -> list[int | None] | None:
        """The tensor's dims where they are numbers."""
        dims = self.dims(tensor)
        return None if dims is None else [d.value for d in dims]

    def dims(self, tensor: Tensor) -> list[Expr] | None:
        """Every dim, unknown ones as atoms; None where the rank is unknown."""
        found = self.facts.dims(tensor)
        return None if found is None else [self.told.get(dim, dim) for dim in found]

    def tie(self, a: Term | None, b: Term | None, why: str = "its size is not known") -> None:
        """The two axes are the same; where one is unknown, or the sizes differ, what is known is frozen."""
        if a is not None and b is not None and a.size == b.size:
            unify(a, b)
            return
        for term in (a, b):
            if term is not None:
                freeze(term, why)

    def freeze(self, tensors: Iterable[Tensor], why: str) -> None:
        """Keeps every axis of the tensors."""
        for tensor in tensors:
            if tensor.name:
                self.hold(self.of(tensor) or (), why)

    def hold(self, terms: Iterable[Term | None], why: str) -> None:
        for term in terms:
            if term is not None:
                freeze(term, why)

    def split(self, term: Term | None, sizes: list[int]) -> list[Term | None]:
        """Parts of an axis one after the other."""
        return [None] * len(sizes) if term is None else list(split(term, sizes))

    def factors(self, term: Term | None, sizes: list[int]) -> list[Term | None]:
        """Factors of an axis, outermost first."""
        found = None if term is None else factors(term, sizes)
        return list(found) if found is not None else [None] * len(sizes)

    def contract(self, node: Node, position: int, axis: int) -> None:
        """The node sums over this axis: contributions of removed units are zero."""
        self.contractions.append(Place(node.name, position, axis))

    def average(self, node: Node, position: int, axis: int) -> None:
        """The node takes a statistic over this axis: what is kept changes with what is removed."""
        self.statistics.append(Place(node.name, position, axis))

    # ---------------------------------------------------------------- for readers

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def term(self, tensor: Tensor, axis: int) -> Term | None:
        terms = self.axes.get(tensor.name)
        return None if terms is None else terms[axis]

    def along(self, place: Place) -> Term | None:
        return self.term(self.nodes[place.node].inputs[place.position], place.axis)

    def can_lose(self, place: Place) -> bool:
        """True where the axis has indices that may go."""
        term = self.along(place)
        return term is not None and bool(free(term))

    def weights(self) -> Iterator[tuple[Node, int, Constant]]:
        """(node, position, constant) of every constant with axes that an operator with multiplications reads."""
        for node in self.graph.nodes:
            if not node.domain and node.op in MULTIPLY:
                for position, tensor in enumerate(node.inputs):
                    if isinstance(tensor, Constant) and tensor.name in self.axes and len(tensor.shape) > 1:
                        yield node, position, tensor


def couple(graph: Graph, skip: Iterable[str] = ()) -> Coupling:
    """The coupling of a graph, whose nodes get names and shapes; `skip` names nodes or tensors to keep whole."""
    from passes.prune.relations import relate

    graph.name_nodes()
    infer(graph)
    coupling = Coupling(graph, Interpreter(graph))
    for tensor in (*graph.inputs, *graph.overridable.values()):
        coupling.freeze([tensor], f"it is the model's input '{tensor.name}'")
    names = set(skip)
    for node in graph.nodes:
        relate(coupling, node)
        _captured(coupling, node)
        if node.name in names or not names.isdisjoint(t.name for t in (*node.inputs, *node.outputs)):
            weights = [t for t in node.inputs if isinstance(t, Constant)]
            coupling.freeze([*weights, *node.outputs], "skip names it")
    for tensor in graph.outputs:
        coupling.freeze([tensor], f"it is the model's output '{tensor.name}'")
    return coupling


def _captured(coupling: Coupling, node: Node) -> None:
    """What a body reads from outside keeps its form."""
    for body in node.bodies():
        for inner in body.walk():
            coupling.freeze(inner.inputs, f"the body of {node.op} '{node.name}' reads it")


def free(term: Term) -> list[Atom]:
    """The atoms of an axis that may lose indices, each once."""
    return [atom for atom in dict.fromkeys(leaves(term)) if not atom.frozen and atom.size > 1]
