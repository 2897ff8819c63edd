"""Decides which operators read int8, and with which scales. Edits nothing.

Every input of a weighted operator is quantised, never its output: what follows a convolution fuses with it, and the Q
of the next weighted operator ends the kernel. The rest follows from that, by taking away until nothing changes:

    skip of a residual Add      in int8 where others read it so, or its maker can and the sum is wanted in int8; the
                                branch stays float, in the epilogue
    pool, Resize, element-wise  in int8 only where both sides are: its inputs come from regions in int8 (one at least
                                read in int8 by somebody else and none out of a MatMul, if there are two), and all its
                                readers want int8
    LayerNormalization          the same, directly behind a convolution
    Concat                      the same; its inputs and its output share the widest scale, so that it vanishes. Where
                                their ranges differ more than eightfold it stays float, its result being quantised
    copies                      (MaxPool, Reshape, Slice, nearest Resize, ...) need nothing, Q and DQ move across them;
                                tensors copied from one have one scale, unless eight times too wide for one of them

Softmax, GELU, masks, normalisations behind a MatMul, and all that follows the last weighted operator stay float, since
nobody asks for their results in int8 but a weighted operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optimizer.graph import Graph, Node, Tensor
from optimizer.qdq import copies, weighted
from optimizer.statistics import PERCENTILE, Histogram
from passes.quantize.tensorrt.partition import CONVOLUTIONS, PRODUCTS, Edge, Region, readers, regions
from passes.quantize.tensorrt.rules import RECURRENT, operands, refusal, source, usable
from passes.quantize.tensorrt.scales import TOP, UNSIGNED, Rest, fits, levels, peak, representable

WIDEST = 8.0  # how much wider a shared range may be than a tensor's own


@dataclass(frozen=True)
class Choice:
    """What the caller asked for. `floor`: least SQNR in dB that a tensor must keep on its own in 8 bits.

    `skip` names nodes and tensors whose operators stay float. `unsigned`: what is never negative is u8, for twice the
    resolution, where the runtime takes both.
    """

    rest: Rest = "fp16"
    method: str = "mse"
    methods: Mapping[str, str] = field(default_factory=dict)
    percentile: float = PERCENTILE
    floor: float = 0.0
    skip: frozenset[str] = frozenset()
    unsigned: bool = False


@dataclass(frozen=True)
class Plan:
    """Inputs to be read in int8, scales by tensor name, weighted operators in int8, and why the others are not.

    `unsigned` names the tensors whose codes are u8.
    """

    edges: list[Edge]
    scales: dict[str, float]
    heads: list[Node]
    reasons: dict[str, str]
    unsigned: frozenset[str] = frozenset()


def plan(
    graph: Graph, statistics: Mapping[str, Histogram], choice: Choice, dropped: Mapping[str, str] | None = None
) -> Plan:
    """What to render of the outermost scope. `dropped`: weighted operators to leave in float, with the reason."""
    reasons: dict[str, str] = {}
    heads, peaks = [], _Peaks(statistics, choice)
    for node in graph.walk():
        if node.op in RECURRENT and not node.domain:
            reasons[node.name] = f"rule: TensorRT has no int8 {node.op}"
        elif weighted(node):
            reason = _reason(graph, node, statistics, choice, peaks) or (dropped or {}).get(node.name, "")
            if reason:
                reasons[node.name] = reason
            else:
                heads.append(node)
    kept = _kept(graph, regions(graph, heads), peaks)
    edges = [edge for region in kept for edge in [*region.inputs, *region.skips]]
    scales, unsigned = _scales(graph, kept, edges, peaks)
    return Plan(edges, scales, heads, reasons, unsigned)


def _reason(graph: Graph, node: Node, statistics: Mapping[str, Histogram], choice: Choice, peaks: _Peaks) -> str:
    if node.name in choice.skip or any(t.name in choice.skip for t in node.outputs):
        return "skip: asked for"
    if node.scope is not graph:
        return "rule: inside a subgraph"
    if why := refusal(graph, node, statistics):
        return f"rule: {why}"
    for tensor in (node.inputs[i] for i in operands(graph, node)):
        if not peaks.usable(tensor):
            return f"rule: {choice.rest} has no scale for '{tensor.name}', which reaches {peaks[tensor]:.3g}"
        if (kept := peaks.sqnr(tensor)) < choice.floor:
            return f"accuracy: '{tensor.name}' keeps {kept:.1f} dB"
    return ""


class _Peaks:
    """The largest magnitude to represent of each tensor, read off its histogram once."""

    def __init__(self, statistics: Mapping[str, Histogram], choice: Choice):
        self.statistics, self.choice = statistics, choice
        self.known: dict[str, float] = {}

    def __getitem__(self, tensor: Tensor) -> float:
        if tensor.name not in self.known:
            method = self.choice.methods.get(tensor.name, self.choice.method)
            self.known[tensor.name] = peak(
                self.statistics[tensor.name], method, self.choice.percentile, self.positive(tensor)
            )
        return self.known[tensor.name]

    def positive(self, tensor: Tensor) -> bool:
        """True where the tensor may have u8 codes: they are allowed, and it was never seen below 0."""
        return self.choice.unsigned and self.statistics[tensor.name].low >= 0

    def usable(self, tensor: Tensor) -> bool:
        """True where the tensor was observed and its scale has a number in the type of the rest."""
        return usable(self.statistics, tensor) and fits(max(self[tensor] / TOP, 1e-30), self.choice.rest)

    def sqnr(self, tensor: Tensor) -> float:
        """Signal to quantisation noise of the tensor alone, in dB."""
        largest = self[tensor]
        low = 0.0 if self.positive(tensor) else -largest
        return self.statistics[tensor.name].sqnr(low, largest, levels(self.positive(tensor)))

    def alike(self, tensors: list[Tensor]) -> bool:
        """True where one scale suits all the tensors; those of zeros suit any."""
        found = [p for t in tensors if (p := self[t]) > 0]
        return not found or max(found) <= WIDEST * min(found)


def _kept(graph: Graph, candidates: list[Region], peaks: _Peaks) -> list[Region]:
    """The regions that run in int8, with the skips they read in int8."""
    kept = [r for r in candidates if r.weighted or all(peaks.usable(n.inputs[i]) for n, i in r.inputs)]
    for region in kept:
        region.skips = [(n, i) for n, i in region.skips if peaks.usable(n.inputs[i])]
    while True:
        state = _State(graph, kept, peaks)
        before = len(kept), sum(len(r.skips) for r in kept)
        kept = [r for r in kept if r.weighted or state.pays(r)]
        state = _State(graph, kept, peaks)
        for region in kept:
            region.skips = [(n, i) for n, i in region.skips if state.shortens(n.inputs[i], region)]
        if (len(kept), sum(len(r.skips) for r in kept)) == before:
            return kept


class _State:
    """What is in int8 while these regions are."""

    def __init__(self, graph: Graph, kept: list[Region], peaks: _Peaks):
        self.graph, self.peaks = graph, peaks
        self.makers = {id(r.result): r for r in kept}
        self.edges = {(id(n), i) for r in kept for n, i in [*r.inputs, *r.skips]}
        self.users: dict[int, list[Region]] = {}
        for region in kept:
            for node, index in [*region.inputs, *region.skips]:
                self.users.setdefault(id(node.inputs[index]), []).append(region)

    def pays(self, region: Region) -> bool:
        """True where an operator without weights has int8 on both sides."""
        tensors = [n.inputs[i] for n, i in region.inputs]
        if not self.wanted(region.result) or not all(self.comes(t, region) for t in tensors):
            return False
        if region.head.op == "Concat":
            return self.peaks.usable(region.result) and self.peaks.alike([*tensors, region.result])
        if region.head.op == "LayerNormalization":
            maker = self.makers.get(id(source(self.graph, tensors[0])))
            return maker is not None and maker.head.op in CONVOLUTIONS
        if len(tensors) == 1:
            return True
        makers = [self.makers.get(id(source(self.graph, t))) for t in tensors]
        products = any(m is not None and m.head.op in PRODUCTS for m in makers)
        return not products and any(self.shared(t, region) for t in tensors)

    def shortens(self, skip: Tensor, region: Region) -> bool:
        """True where a residual Add had better read its skip in int8: that is there, or its sum is wanted so."""
        if self.shared(skip, region):
            return True
        return self.comes(skip, region) and any(self._wants(n, region.result) for n in readers(region.result))

    def wanted(self, tensor: Tensor) -> bool:
        """True where everybody reads the tensor in int8, perhaps through copies."""
        nodes = readers(tensor)
        if not nodes or self.graph.is_output(tensor):
            return False
        return all(self._wants(node, tensor) for node in nodes)

    def _wants(self, node: Node, tensor: Tensor) -> bool:
        places = [i for i, t in enumerate(node.inputs) if t is tensor]
        if all((id(node), i) in self.edges for i in places):
            return True
        if places != [0] or not copies(self.graph, node):
            return False
        return all(self.wanted(t) for t in node.outputs if t.name)

    def comes(self, tensor: Tensor, reader: Region) -> bool:
        """True where the tensor's maker can end in a Q: a region in int8; or where there is a Q already."""
        return id(source(self.graph, tensor)) in self.makers or self.shared(tensor, reader)

    def shared(self, tensor: Tensor, reader: Region) -> bool:
        return any(user is not reader for user in self.users.get(id(tensor), ()))


def _scales(
    graph: Graph, kept: list[Region], edges: list[Edge], peaks: _Peaks
) -> tuple[dict[str, float], frozenset[str]]:
    """Scales by name, one for all tensors around a Concat, one for all copies of a tensor; and whose codes are u8."""
    tensors = {id(t): t for t in (n.inputs[i] for n, i in edges)}
    groups = {key: [t] for key, t in tensors.items()}

    def join(members: list[Tensor]) -> None:
        joined = list({id(t): t for m in members for t in groups[id(m)]}.values())
        for tensor in joined:
            groups[id(tensor)] = joined

    copied: dict[int, list[Tensor]] = {}
    for tensor in tensors.values():
        copied.setdefault(id(source(graph, tensor)), []).append(tensor)
    for region in kept:
        if region.head.op == "Concat":
            join([n.inputs[i] for n, i in region.inputs] + copied.get(id(region.result), []))
    for members in copied.values():
        if peaks.alike([t for m in members for t in groups[id(m)]]):
            join(members)
    found, unsigned = {}, []
    for key, tensor in tensors.items():
        positive = all(peaks.positive(t) for t in groups[key])
        scale = max(peaks[t] for t in groups[key]) / (UNSIGNED if positive else TOP)
        found[tensor.name] = float(representable(scale, peaks.choice.rest))  # type: ignore[arg-type]  # a scalar array
        unsigned += [tensor.name] * positive
    return found, frozenset(unsigned)
