"""Transposes move past operators that work in any order of axes, and disappear where they meet their inverses.

    f(transpose(x))  =  transpose(f'(x))

f' being f with its axes renumbered and its constants turned (`layout` has the forms). An exporter that keeps another
layout than ONNX leaves Transposes around every operator with a fixed one, and two of them around whatever lies between.

Behind a Transpose every tensor has a second form: the one it would have without. Which nodes shall compute in that form
is a minimal cut: a tensor costs a Transpose of its bytes where it is made in one form and read in the other, once per
direction however many nodes read it; a Transpose whose input is in the second form costs nothing, for the two become
one or none. Nothing is rewritten unless bytes fall and Transposes do not become more, so two runs in a row never undo
each other; where several ways are equally cheap the one is taken that moves the fewest nodes. Only nodes behind which
there is something to gain are looked at: another Transpose, a node where two paths meet, one that makes less than it
reads. (S15 of the usual catalogues.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from optimizer.graph import Graph, Node, Tensor, Variable
from optimizer.order import in_order
from passes.fuse.layout import Moved, Perm, composed, inverse, moved, permutation, turned
from passes.fuse.mincut import smallest_side

LAUNCH = 1024  # bytes that could be moved while a Transpose starts
SYMBOL = 16  # elements along an axis of unknown size
CODES = 1 << 50  # bytes: QuantizeLinear and DequantizeLinear stay side by side
NEVER = 1 << 62
FIRST, SECOND = "first", "second"  # forms of a tensor: as the model has it, and without the Transpose before it


Net = defaultdict[Hashable, dict[Hashable, int]]


@dataclass(frozen=True)
class Region:
    """Nodes of one scope that can compute in the second form, and how far each tensor is from its own.

    `forms` by id of the node, a Transpose vanishes; `perms` by id of the tensor, only those whose two forms differ.
    """

    scope: Graph
    nodes: list[Node]  # in execution order
    forms: dict[int, Moved]
    perms: dict[int, Perm]
    tensors: list[Tensor]  # those of `perms`; held, so that no new tensor gets the id of one that is gone

    def begins(self, node: Node) -> bool:
        """True for a Transpose of a tensor that has one form."""
        return node.op == "Transpose" and id(node.inputs[0]) not in self.perms


def sink_transposes(graph: Graph) -> int:
    """Moves Transposes in every scope where that saves bytes; returns how many nodes it rewrote."""
    return sum(_sink(scope) for scope in list(graph.scopes()))


def _sink(scope: Graph) -> int:
    if sum(node.op == "Transpose" and not node.domain for node in scope.nodes) < 2:
        return 0
    region = _useful(_region(scope))
    return sum(_Move(region).run(_choose(region, island)) for island in _islands(region))


def _region(scope: Graph) -> Region:
    """Follows every Transpose down through the nodes that have a second form."""
    region = Region(scope, in_order(scope.nodes, scope.root.nested), {}, {}, [])
    for node in region.nodes:
        if node.op == "Transpose" and not node.domain:
            form = _transpose(region, node)
        elif any(id(t) in region.perms for t in node.inputs):
            form = moved(scope, node, [region.perms.get(id(t)) for t in node.inputs])
        else:
            continue
        if form is None:
            continue
        region.forms[id(node)] = form
        if form.perm != tuple(sorted(form.perm)):
            region.perms.update((id(t), form.perm) for t in node.outputs if t.name)
    return region


def _transpose(region: Region, node: Node) -> Moved | None:
    own, before = permutation(node), region.perms.get(id(node.inputs[0]))
    return None if own is None else Moved(own if before is None else composed(before, own))


def _useful(region: Region) -> Region:
    """Only the nodes behind which something is to be gained."""
    kept: list[Node] = []
    wanted: set[int] = set()  # ids of tensors whose second form is of use
    for node in reversed(region.nodes):
        if id(node) not in region.forms:
            continue
        inner = {id(t): t for t in node.inputs if id(t) in region.perms}
        gains = inner and (node.op == "Transpose" or len(inner) > 1 or _size(node.outputs) < _size(inner.values()))
        if gains or any(id(t) in wanted for t in node.outputs):
            kept.append(node)
            wanted.update(inner)
    forms = {id(node): region.forms[id(node)] for node in kept}
    tensors = [t for node in kept for t in node.outputs if id(t) in region.perms]
    return Region(region.scope, kept[::-1], forms, {id(t): region.perms[id(t)] for t in tensors}, tensors)


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of all, each unknown size taken for the same."""
    return sum(
        math.prod(d if isinstance(d, int) else SYMBOL for d in t.shape or ()) * np.dtype(t.dtype or np.float32).itemsize
        for t in tensors
    )


def _bytes(tensor: Tensor) -> int:
    """What a Transpose of the tensor moves."""
    return CODES if tensor.inputs and tensor.inputs[0].op == "QuantizeLinear" else _size([tensor])


def _islands(region: Region) -> list[list[Node]]:
    """The nodes that share tensors with two forms, directly or through others, in execution order."""
    near: dict[int, list[Node]] = {id(node): [] for node in region.nodes}
    for tensor in region.tensors:
        maker = tensor.inputs[0]
        for reader in dict.fromkeys(tensor.outputs):
            if id(reader) in region.forms:
                near[id(maker)].append(reader)
                near[id(reader)].append(maker)
    found, seen = [], set[int]()
    for node in region.nodes:
        island, pending = [], [node]
        while pending:
            one = pending.pop()
            if id(one) not in seen:
                seen.add(id(one))
                island.append(one)
                pending.extend(near[id(one)])
        if len(island) > 1:
            found.append(sorted(island, key=lambda one: one.order))
    return found


def _choose(region: Region, island: list[Node]) -> list[Node]:
    """The nodes that shall compute in the second form; none unless that saves bytes and adds no Transpose.

    First the cheapest way is tried, then the cheapest of those with the fewest Transposes.
    """
    now = [_bytes(node.outputs[0]) for node in island if node.op == "Transpose"]
    for launch in (LAUNCH, CODES // len(island)):
        net = _net(region, island, launch)
        second = smallest_side(net, FIRST, SECOND)
        cut = [c - launch for u, ends in net.items() if u not in second for v, c in ends.items() if v in second]
        if len(cut) <= len(now) and (sum(cut), len(cut)) < (sum(now), len(now)):
            return [node for node in island if id(node) in second or region.begins(node)]
    return []


def _net(region: Region, island: list[Node], launch: int) -> Net:
    """A network whose cuts cost the Transposes of an island; `launch` bytes are what each costs besides its own.

    An edge that cannot be cut says that its end is in the first form where its start is.
    """
    net: Net = defaultdict(dict)
    for node in island:
        form, begins = region.forms[id(node)], region.begins(node)
        if node.op == "Transpose" and not begins:
            net[id(node)][SECOND] = launch + _bytes(node.outputs[0])
        for tensor in node.outputs:
            if id(tensor) in region.perms:
                _connect(net, region, tensor, SECOND if begins else id(node), launch + _bytes(tensor))
        for tensor in (node.inputs[i] for i in form.turned):
            if not region.scope.is_constant(tensor):
                down = ("down", id(tensor), form.perm)
                net[FIRST][down] = launch + _bytes(tensor)
                net[down][id(node)] = NEVER
    return net


def _connect(net: Net, region: Region, tensor: Tensor, maker: int | str, cost: int) -> None:
    """Lets a tensor cost a Transpose in each direction: `up` where a reader wants the first form, `down` the second."""
    readers: list[int | str] = [id(r) if id(r) in region.forms else FIRST for r in dict.fromkeys(tensor.outputs)]
    readers += [FIRST] * region.scope.is_output(tensor)
    up, down = ("up", id(tensor)), ("down", id(tensor))
    net[up][maker] = cost
    for reader in readers:
        net[reader][up] = NEVER
        if maker != SECOND and reader != FIRST:
            net[maker][down] = cost
            net[down][reader] = NEVER


class _Move:
    """Rewrites the chosen nodes of an island to the second form, and puts Transposes where the forms meet."""

    def __init__(self, region: Region):
        self.region, self.scope = region, region.scope
        self.second: dict[tuple[int, Perm], Tensor] = {}  # by id of the first form, and how far they are apart
        self.made: list[tuple[Tensor, Perm]] = []  # in their first form

    def run(self, chosen: list[Node]) -> int:
        for node in chosen:
            if node.op == "Transpose":
                self._pass(node)
            else:
                self._rewrite(node)
        for tensor, perm in self.made:
            self._finish(tensor, perm)
        return len(chosen)

    def _form(self, tensor: Tensor, perm: Perm) -> Tensor:
        """The second form of a tensor, by a Transpose where nothing makes it."""
        key = (id(tensor), perm)
        if key not in self.second:
            back = inverse(perm)
            shape = None if tensor.shape is None else [tensor.shape[axis] for axis in back]
            self.second[key] = out = self.scope.variable(f"{tensor.name}_turned", tensor.dtype, shape)
            self.scope.add("Transpose", [tensor], [out], {"perm": list(back)})
        return self.second[key]

    def _pass(self, node: Node) -> None:
        """Readers of a Transpose read its input instead, where they are to."""
        x, out, perm = node.inputs[0], node.outputs[0], self.region.forms[id(node)].perm
        u = x if self.region.begins(node) else self._form(x, self.region.perms[id(x)])
        if id(out) not in self.region.perms:
            self.scope.bypass(node, u)
            return
        self.second[id(out), perm] = u
        self.made.append((out, perm))
        if not self.region.begins(node):
            node.outputs.clear()
            self.scope.remove(node)

    def _rewrite(self, node: Node) -> None:
        form = self.region.forms[id(node)]
        inputs = [self._input(node, i, form) for i in range(len(node.inputs))]
        for i in sorted(form.arrays):
            inputs += [Variable.empty()] * (i + 1 - len(inputs))
            inputs[i] = self.scope.constant(form.arrays[i], f"{node.op.lower()}_{i}")
        old = list(node.outputs)
        outputs: list[Tensor] = []
        for tensor in old:
            if id(tensor) in self.region.perms:
                self.made.append((tensor, form.perm))
                shape = None if tensor.shape is None else [tensor.shape[axis] for axis in inverse(form.perm)]
                outputs.append(self.scope.variable(f"{tensor.name}_moved", tensor.dtype, shape))
                self.second[id(tensor), form.perm] = outputs[-1]
            else:
                outputs.append(tensor)
        node.outputs.clear()
        self.scope.add(node.op, inputs, outputs, {**node.attrs, **form.attrs}, "", node.name, node)
        self.scope.remove(node)

    def _input(self, node: Node, index: int, form: Moved) -> Tensor:
        tensor: Tensor = node.inputs[index]
        if id(tensor) in self.region.perms:
            return self._form(tensor, self.region.perms[id(tensor)])
        if index not in form.turned:
            return tensor
        if (values := self.scope.array(tensor)) is None:
            return self._form(tensor, form.perm)
        return self.scope.constant(turned(values, form.perm), tensor.name)

    def _finish(self, tensor: Tensor, perm: Perm) -> None:
        """Makes the first form of a tensor where it is still read; the Transpose it all began with goes where not."""
        maker = tensor.inputs[0] if tensor.inputs else None
        read = tensor.outputs or self.scope.is_output(tensor)
        if maker is not None and not read:
            self.scope.remove(maker)
        if maker is None and read:
            reader = next((r for r in tensor.outputs if r.scope is self.scope), None)
            self.scope.add("Transpose", [self.second[id(tensor), perm]], [tensor], {"perm": list(perm)}, before=reader)
