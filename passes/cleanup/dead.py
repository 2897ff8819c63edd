"""What never runs or is never read goes: Dropout in inference (N12), branches not taken (H8), unused results (H2)."""

from __future__ import annotations

import numpy as np

from optimizer import shapes
from optimizer.graph import Graph, Node, Tensor
from optimizer.ops import attribute

SMALL = 1024  # elements: a mask up to this size becomes an initializer


def drop_dropout(graph: Graph) -> int:
    """Removes Dropout that is certain to run in inference; a mask in use becomes all true, as the operator defines.

    Before operator set 12 runtimes disagree about the mask, so a node whose mask is read stays. Before 7 `is_test`
    must be set.
    """
    count = 0
    for node in graph.walk():
        if node.op == "Dropout" and not node.domain and _in_inference(graph, node):
            count += _drop(graph, node)
    return count


def _in_inference(graph: Graph, node: Node) -> bool:
    if graph.opset < 7:
        return bool(attribute(graph, node, "is_test"))
    if graph.opset < 12 or len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    training = graph.array(node.inputs[2])
    return training is not None and not training.any()


def _drop(graph: Graph, node: Node) -> int:
    scope, x, outs = node.scope, node.inputs[0], list(node.outputs)
    assert scope is not None
    mask = next((t for t in outs[1:] if t.name and (t.outputs or graph.is_output(t))), None)
    if mask is not None and graph.opset < 12:
        return 0
    shapes.infer(graph)  # the file may say of x what is not so
    scope.remove(node)
    if mask is not None:
        _all_true(scope, x, mask, node)
    scope.replace(outs[0], x)
    return 1


def _all_true(scope: Graph, x: Tensor, mask: Tensor, place: Node) -> None:
    known = shapes.static(x)
    if known is not None and int(np.prod(known)) <= SMALL:
        scope.replace(mask, scope.constant(np.ones(known, bool), "mask"))
        return
    shape = scope.variable("shape", np.dtype(np.int64))
    scope.add("Shape", [x], [shape])
    scope.add("ConstantOfShape", [shape], [mask], {"value": np.array([True])}, name=place.name)


def take_branches(graph: Graph) -> int:
    """Puts the branch in the place of an If whose condition is a constant, inner ones first."""
    count = 0
    for scope in reversed(list(graph.scopes())):
        for node in list(scope.nodes):
            if node.op != "If" or node.domain or (condition := graph.array(node.inputs[0])) is None:
                continue
            scope.inline(node, node.attrs["then_branch" if condition.all() else "else_branch"])
            count += 1
    return count


def assume_conditions(graph: Graph) -> int:
    """Inside a branch its condition is known: an If in there that asks for the same tensor reads a constant (H8)."""
    count = 0
    for node in graph.walk():
        if node.op != "If" or node.domain or graph.array(node.inputs[0]) is not None:
            continue
        for key, value in (("then_branch", True), ("else_branch", False)):
            for inner in node.attrs[key].walk():
                if inner.op == "If" and not inner.domain and inner.inputs[0] is node.inputs[0]:
                    graph.set_input(inner, 0, graph.constant(np.array(value), "condition"))
                    count += 1
    return count


def drop_unused_results(graph: Graph) -> int:
    """Takes outputs that nobody reads off If, and off Loop where they are scan outputs; returns how many.

    A value that a Loop carries from turn to turn may be needed inside, so it stays.
    """
    count = 0
    for node in graph.walk():
        if node.domain or node.op not in ("If", "Loop"):
            continue
        carried = len(node.inputs) - 2 if node.op == "Loop" else 0
        for index in reversed(range(carried, len(node.outputs))):
            out = node.outputs[index]
            if len(node.outputs) > 1 and not (out.name and (out.outputs or graph.is_output(out))):
                del node.outputs[index]
                for body in node.bodies():
                    body.drop_output(index + (node.op == "Loop"))
                count += 1
    return count
