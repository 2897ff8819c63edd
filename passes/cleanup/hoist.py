"""What a loop computes anew in each turn from the same values is computed once, before it (H10).

A node of the body of Loop or Scan moves out if it is pure and all that it reads comes from outside: then each turn got
the same. It must be certain that there is a turn (a constant trip count and a condition that is constant or absent; a
scanned axis of known length), since a loop that does not run computes nothing: a node moved out of it would cost time
all the same, and may fail where the model did not. Nodes that hold subgraphs stay, as do those that give the body an
output, which must be the body's own. Of the branches of an If nothing is moved out, because one of them does not run.
"""

from __future__ import annotations

from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute, is_pure
from passes.cleanup.unroll import at_least_once

STAY = frozenset(["Constant", "Identity"])  # nothing is gained


def hoist_invariants(graph: Graph) -> int:
    """Moves invariant nodes out of loops, innermost first; returns how many moved."""
    count = 0
    for scope in reversed(list(graph.scopes())):
        for loop in list(scope.nodes):
            if loop.domain or not _runs(graph, loop):
                continue
            for node in list(loop.attrs["body"].nodes):
                if _moves(node, loop.attrs["body"]):
                    scope.take(node, loop)
                    count += 1
    return count


def _runs(graph: Graph, node: Node) -> bool:
    """True for a loop whose body is certain to run."""
    if node.op == "Loop":
        return at_least_once(graph, node)
    if node.op != "Scan" or graph.opset < 9:  # before 9 it has a batch, and lengths of its own
        return False
    scanned = node.inputs[-int(node.attrs["num_scan_inputs"]) :]
    axes = attribute(graph, node, "scan_input_axes") or [0] * len(scanned)
    pairs = zip(scanned, axes, strict=True)
    lengths = [t.shape[a] for t, a in pairs if t.shape is not None and -len(t.shape) <= a < len(t.shape)]
    return any(isinstance(length, int) and length > 0 for length in lengths)


def _moves(node: Node, body: Graph) -> bool:
    read = [t for t in node.inputs if t.name]
    if node.domain or node.op in STAY or not read or any(node.bodies()) or not is_pure(node):
        return False
    return not any(_inside(t, body) for t in read) and not any(body.is_output(t) for t in node.outputs)


def _inside(tensor: Tensor, body: Graph) -> bool:
    if tensor.inputs:
        return tensor.inputs[0].scope is body
    return any(tensor is t for t in body.inputs)
