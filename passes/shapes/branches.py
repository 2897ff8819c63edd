"""A branch of an If that can only end in an error is never the one that counts (H8): the If takes the other.

Exporters ask for a size at run time, squeeze the axis where it is 1, and go on with one rank more where it is not, even
if what follows takes only one of both. Let the condition be false. Then the result has the rank of the else branch, and
what follows from that rank (Size(Shape(x)), further Ifs) is known. If an operator that runs whenever the If does now
gets an input of a rank that it refuses by definition, the run fails. So in every run that gives outputs the condition
was true, and then both models give the same; where the original fails, the rewritten one may give numbers.

Only ranks are believed, only of the operators below, and only in scopes that are no body of a loop: there, one turn
could fail while another does not. The assumption is tried on a copy, and only where the branches' ranks differ and
such an operator can be reached.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optimizer import shapes
from optimizer.graph import Graph, Node
from passes.cleanup.dead import take_branches
from passes.shapes.interpret import Interpreter

TRIES = 16  # conditions that are tried in one run; each costs two copies of the graph without its weights
RECURRENT = frozenset(["LSTM", "GRU", "RNN"])
CONVOLUTION = frozenset(["Conv", "ConvTranspose"])
STRICT = RECURRENT | CONVOLUTION | {"Gemm"}


def decide_branches(graph: Graph) -> int:
    """Makes conditions constant where one branch can only fail; returns how many. Shapes must have been inferred."""
    count = 0
    for node in [n for n in _always(graph) if _differs(graph, n) and _meets(n)][:TRIES]:
        failing = [taken for taken in (True, False) if _fails(graph.root, node, taken)]
        if len(failing) == 1:
            scope = node.scope
            assert scope is not None
            scope.set_input(node, 0, scope.constant(np.array(not failing[0]), "condition"))
            count += 1
    return count


def _always(scope: Graph) -> Iterator[Node]:
    """The nodes outside of loops."""
    for node in list(scope.nodes):
        yield node
        if node.op == "If" and not node.domain:
            for body in node.bodies():
                yield from _always(body)


def _differs(graph: Graph, node: Node) -> bool:
    """True for an If that is undecided and whose branches give results of different, known ranks."""
    if node.op != "If" or node.domain or graph.is_constant(node.inputs[0]):
        return False
    pairs = zip(*(body.outputs for body in node.bodies()), strict=True)
    return any(a.shape is not None and b.shape is not None and len(a.shape) != len(b.shape) for a, b in pairs)


def _meets(node: Node) -> bool:
    """True where an operator that insists on a rank depends on the node's results."""
    pending, seen = [node], {id(node)}
    while pending:
        readers = [r for t in pending.pop().outputs for r in t.outputs if id(r) not in seen]
        if any(r.op in STRICT for r in readers):
            return True
        holders = [h for r in readers if (h := _holder(r)) is not None and id(h) not in seen]
        seen.update(map(id, [*readers, *holders]))
        pending += [*readers, *holders]
    return False


def _holder(node: Node) -> Node | None:
    """The node in whose subgraph this one stands."""
    scope = node.scope
    if scope is None or scope.parent is None:
        return None
    return next(n for n in scope.parent.nodes if any(body is scope for body in n.bodies()))


def _fails(root: Graph, node: Node, taken: bool) -> bool:
    """True where every run that takes this branch of the If ends in an error."""
    twin = root.copy()
    same = next(n for n in twin.walk() if n.name == node.name)
    scope = same.scope
    assert scope is not None
    scope.set_input(same, 0, scope.constant(np.array(taken)))
    while take_branches(twin):
        facts = _facts(twin)
        for other in [n for n in twin.walk() if n.op == "If" and not n.domain]:
            values = facts.values(other.inputs[0])
            if values is not None and values.size == 1 and (known := values.reshape(-1)[0].value) is not None:
                twin.set_input(other, 0, twin.constant(np.array(bool(known))))
    twin.sweep()
    facts = _facts(twin)
    return any(_refuses(n, facts) for n in scope.nodes)


def _facts(graph: Graph) -> Interpreter:
    graph.tidy()
    shapes.infer(graph)
    return Interpreter(graph)


def _refuses(node: Node, facts: Interpreter) -> bool:
    """True where an input has a rank that the operator does not take, by its definition and in ONNX Runtime."""
    if node.domain or node.op not in STRICT or not node.inputs:  # without inputs it went with a branch not taken
        return False
    dims = [facts.dims(t) for t in node.inputs[:2]]
    if dims[0] is None:
        return False
    if node.op in RECURRENT:
        return len(dims[0]) != 3
    if node.op == "Gemm":
        return len(dims[0]) > 2
    return dims[1] is not None and len(dims[0]) != len(dims[1])
