"""Cuts a graph into what TensorRT makes one kernel of: a weighted operator and the element-wise ones behind it.

    region     an operator and what follows while it is element-wise and reads nothing else: bias, activation, the
               diamonds of Swish and GELU. What leaves a region is one tensor, its result.
    residual   an Add of a convolution's result and a tensor from elsewhere, the skip. It joins the convolution's
               region, which computes it in its epilogue; only the skip is an input.

Which operand of an Add is the branch: the one that a convolution has made, and nobody else reads. Where both are, the
paths back to their nearest common ancestor decide: the longer is the branch (a shortcut is short, with or without a
convolution for a change of size). An Add of a tensor and what element-wise operators make of that tensor alone is no
residual, nor is one behind a MatMul (transformers, ConvNeXt): TensorRT has no such kernel.

Sources: NVIDIA, TensorRT documentation, "Working with Quantized Types" (recommendations on placing Q/DQ); the
partitioning of NVIDIA's ModelOpt for ONNX.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from optimizer.graph import Constant, Graph, Node, Tensor
from optimizer.qdq import BINARY, UNARY, copies, weighted
from passes.quantize.tensorrt.rules import UNREAD, operands

LONGEST = 16  # element-wise operators looked at behind a region
CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("Gemm", "MatMul")
ALONE = ("AveragePool", "GlobalAveragePool", "Resize", "LayerNormalization", "Concat", "Add", "Mul")

Edge = tuple[Node, int]  # an operator's input, by position


@dataclass(eq=False)
class Region:
    """Operators that become one kernel: `head` first. `inputs` are read in int8, `skips` (of residual Adds) may be."""

    head: Node
    inputs: list[Edge]
    nodes: list[Node]
    result: Tensor
    skips: list[Edge]

    @property
    def weighted(self) -> bool:
        return weighted(self.head)


def regions(graph: Graph, heads: Iterable[Node]) -> list[Region]:
    """The regions of these weighted operators, then those of others that have an int8 form; in execution order."""
    found = [Region(n, [(n, i) for i in operands(graph, n)], [n], n.outputs[0], []) for n in heads]
    for region in found:
        _grow(graph, region)
    results = {id(r.result): r for r in found}
    taken = {id(n) for r in found for n in r.nodes}
    for node in graph.nodes:
        if id(node) not in taken and (skip := _skip(graph, node, results)) is not None:
            region = results.pop(id(node.inputs[1 - skip]))
            region.skips.append((node, skip))
            region.nodes.append(node)
            region.result = node.outputs[0]
            _grow(graph, region)
            results[id(region.result)] = region
            taken.update(id(n) for n in region.nodes)
    for node in graph.nodes:
        if id(node) not in taken and (positions := _alone(graph, node)):
            region = Region(node, [(node, i) for i in positions], [node], node.outputs[0], [])
            if node.op != "Concat":
                _grow(graph, region)
            taken.update(id(n) for n in region.nodes)
            found.append(region)
    return sorted(found, key=lambda r: r.head.order)


def readers(tensor: Tensor) -> list[Node]:
    """The nodes that read the tensor's values, each once."""
    return list({id(n): n for n in tensor.outputs if n.op not in UNREAD}.values())


def _alone(graph: Graph, node: Node) -> list[int]:
    """Positions of the inputs of an operator without weights that has an int8 form; none where it has not."""
    if node.domain or node.op not in ALONE or copies(graph, node) or len(node.outputs) != 1:
        return []
    if node.op in ("Concat", "Add", "Mul"):
        plain = len(node.inputs) > 1 and not any(graph.is_constant(t) for t in node.inputs)
        return list(range(len(node.inputs))) if plain else []
    return [] if graph.is_constant(node.inputs[0]) else [0]


def _grow(graph: Graph, region: Region) -> None:
    """Takes in the element-wise operators behind, up to the last point where a single tensor leaves them."""
    given = set() if region.weighted else {id(n.inputs[i]) for n, i in region.inputs}
    inside, leaving, added = {id(region.result), *given}, [region.result], list[Node]()
    end, result = 0, region.result
    while len(added) < LONGEST:
        done = {id(n) for n in added}
        following = [n for t in leaving for n in readers(t) if id(n) not in done and _elementwise(graph, n, inside)]
        if not following:
            break
        node = min(following, key=lambda n: n.order)
        added.append(node)
        done.add(id(node))
        inside.add(id(node.outputs[0]))
        leaving = [t for t in [*leaving, node.outputs[0]] if graph.is_output(t) or _read_outside(t, done)]
        if len(leaving) == 1:
            end, result = len(added), leaving[0]
    region.nodes.extend(added[:end])
    region.inputs.extend((n, i) for n in added[:end] for i, t in enumerate(n.inputs) if id(t) in given)
    region.result = result


def _read_outside(tensor: Tensor, inside: Collection[int]) -> bool:
    return any(id(n) not in inside for n in readers(tensor))


def _elementwise(graph: Graph, node: Node, inside: Collection[int]) -> bool:
    """True for an element-wise operator that reads tensors of the region and constants only."""
    if node.domain or node.op not in UNARY | BINARY or len(node.outputs) != 1:
        return False
    return all(id(t) in inside or graph.is_constant(t) for t in node.inputs if t.name)


def _skip(graph: Graph, node: Node, results: Mapping[int, Region]) -> int | None:
    """The position of the skip in a residual Add, or None."""
    if node.domain or node.op != "Add" or any(graph.is_constant(t) for t in node.inputs):
        return None
    branches = [i for i, t in enumerate(node.inputs) if _is_branch(graph, t, node, results)]
    if not branches or node.inputs[0] is node.inputs[1]:
        return None
    if len(branches) == 1:
        return 1 - branches[0]
    first, second = _distances(*node.inputs)
    return 1 if first > second else 0


def _is_branch(graph: Graph, tensor: Tensor, add: Node, results: Mapping[int, Region]) -> bool:
    region = results.get(id(tensor))
    return region is not None and region.head.op in CONVOLUTIONS and graph.only_feeds(tensor, add)


def _distances(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Nodes between each tensor and the last tensor that both were computed from; infinity where there is none."""
    left, right = _ancestors(a), _ancestors(b)
    common = [(t.inputs[0].order if t.inputs else 0.0, key) for key, (t, _) in left.items() if key in right]
    if not common:
        return float("inf"), float("inf")
    key = max(common)[1]
    return left[key][1], right[key][1]


def _ancestors(tensor: Tensor) -> dict[int, tuple[Tensor, int]]:
    """Every computed tensor this one depends on, itself included, with the fewest nodes between; by identity."""
    found = {id(tensor): (tensor, 0)}
    pending = deque([tensor])
    while pending:
        last = pending.popleft()
        for before in last.inputs[0].inputs if last.inputs else ():
            if before.name and not isinstance(before, Constant) and id(before) not in found:
                found[id(before)] = before, found[id(last)][1] + 1
                pending.append(before)
    return found
