"""The rule engine: rules propose, the engine checks the global preconditions and only then edits the graph.

A rule is a function `(Match, Draft) -> Tensor | None`. It drafts new nodes and returns the tensor that shall stand for
the root's output; nothing is edited while it thinks. The engine refuses a proposal that

    G2  reads a constant that callers may override   (`Draft.array` gives no value for it)
    G3  changes dtype or rank, contradicts a known dim, or puts an existing tensor in the place of one whose
        shape is not provably the same
    G4  would rename an output or tie it to an input (the old output tensor is kept; Identity bridges the rest)
    G8  may change NaN or -0, unless fast-math is asked for
    G9  makes the file larger by more than 1 KiB or 1 % (new constants against those that die)

and the matcher has already refused violations of G1, G5 and G6; attribute defaults come from the schemas (G7).
Dispatch is by the root's operator over a worklist of touched nodes, so the cost is linear in the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

from optimizer import shapes
from optimizer.decode import dim
from optimizer.encode import to_node, type_proto
from optimizer.errors import BugError
from optimizer.graph import Array, Constant, Dim, Graph, Node, Tensor, Variable, peek
from optimizer.io import nbytes
from optimizer.match import CONSTANT, Match, Op, match, parse, suits
from optimizer.ops import attribute

SLACK = 1024  # bytes that a rewrite may add without asking
# Inference calculates what these make from the types and shapes of what they read, never from values.
BY_TYPE = frozenset(
    ["Add", "Conv", "ConvTranspose", "Div", "Gemm", "Identity", "MatMul", "Mul", "Relu", "Sub", "Transpose"]
)

Kind = tuple[np.dtype[Any], tuple[Dim, ...] | None]


@dataclass(frozen=True)
class Drafted:
    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Variable, ...]
    attrs: Mapping[str, Any]
    domain: str


@dataclass
class Draft:
    """Nodes that a rule would like to have; they join the graph only if the proposal passes."""

    graph: Graph
    nodes: list[Drafted] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)

    def array(self, tensor: Tensor | None) -> Array | None:
        """The value of a true constant, read-only; None for anything else."""
        return None if tensor is None else self.graph.array(tensor)

    def attr(self, node: Node, name: str) -> Any:
        """An attribute with the default of the model's own operator set."""
        return attribute(self.graph, node, name)

    def constant(self, values: Array, hint: str = "const") -> Constant:
        made = Constant(hint, np.ascontiguousarray(values).reshape(np.shape(values)))
        self.constants.append(made)
        return made

    def node(
        self, op: str, *inputs: Tensor | None, attrs: Mapping[str, Any] | None = None, domain: str = ""
    ) -> Variable:
        """Drafts a node with one output and returns that output; trailing inputs that are None are left out."""
        out = Variable(op.lower())
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        self.nodes.append(Drafted(op, inputs, (out,), dict(attrs or {}), domain))
        return out

    def split(
        self, op: str, *inputs: Tensor | None, count: int, attrs: Mapping[str, Any] | None = None
    ) -> list[Variable]:
        """Drafts a node with `count` outputs."""
        outs = tuple(Variable(op.lower()) for _ in range(count))
        self.nodes.append(Drafted(op, inputs, outs, dict(attrs or {}), ""))
        return list(outs)


Proposal = Callable[[Match, Draft], Tensor | None]


@dataclass(frozen=True)
class Rule:
    """One rewrite. `shape_safe`: the operator's own definition says that the returned tensor has the root's shape.

    `may_grow`: bytes may grow because the rule was chosen by measurement. `fast_math`: NaN or -0 may change. `shared`:
    inner nodes may have other readers and stay for those, because the root costs no more on what they read.
    """

    name: str
    patterns: tuple[Op, ...]
    propose: Proposal
    shape_safe: bool = False
    may_grow: bool = False
    fast_math: bool = False
    since: int = 1
    shared: bool = False


def rule(
    *patterns: str,
    shape_safe: bool = False,
    may_grow: bool = False,
    fast_math: bool = False,
    since: int = 1,
    shared: bool = False,
) -> Callable[[Proposal], Rule]:
    """Makes a rule of a function `(m, make) -> Tensor | None`; its name is the function's, dashes for underscores."""

    def decorate(propose: Proposal) -> Rule:
        name = propose.__name__.strip("_").replace("_", "-")
        return Rule(name, tuple(map(parse, patterns)), propose, shape_safe, may_grow, fast_math, since, shared)

    return decorate


def apply_rules(graph: Graph, rules: Sequence[Rule], *, fast_math: bool = False, infer: bool = True) -> dict[str, int]:
    """Rewrites every scope until no rule fires; returns how often each one did (only those that did)."""
    if infer:
        shapes.infer(graph)
    if graph.journal is not None:
        graph.journal.applies(rules, fast_math)
    table = _Table(one for one in rules if one.since <= graph.opset and (fast_math or not one.fast_math))
    fired: dict[str, int] = {}
    with graph.equal():
        for scope in list(graph.scopes()):
            _drain(scope, table, fired)
    return fired


class _Table:
    """Rules by the operator at their root. What makes a node's inputs leaves few of them, found in one look-up."""

    def __init__(self, rules: Iterable[Rule]):
        self.rooted: dict[str, list[tuple[Rule, Op]]] = {}
        for one in rules:
            for pattern in one.patterns:
                for op in pattern.ops:
                    self.rooted.setdefault(op, []).append((one, pattern))
        self._left: dict[tuple[str, ...], list[tuple[Rule, Op]]] = {}

    def at(self, node: Node) -> Sequence[tuple[Rule, Op]]:
        """The rules that may fit at a node, in the order in which they are to be tried."""
        rooted = self.rooted.get(node.op)
        if rooted is None:
            return ()
        makers = [t.inputs[0].op if t.inputs else CONSTANT if t.__class__ is Constant else "" for t in node.inputs]
        key = (node.op, *makers)
        left = self._left.get(key)
        if left is None:
            left = self._left[key] = [(one, pattern) for one, pattern in rooted if suits(pattern, node.op, makers)]
        return left


def _drain(scope: Graph, table: _Table, fired: dict[str, int]) -> None:
    pending = deque(scope.nodes)
    queued = {id(node) for node in pending}
    limit = 1000 + 50 * len(pending)
    while pending:
        node = pending.popleft()
        queued.discard(id(node))
        if node.order < 0 or node.domain or node.scope is not scope:  # readers may sit in a subgraph: its turn comes
            continue
        for one, pattern in table.at(node):
            touched = _try(one, pattern, node, scope)
            if touched is None:
                continue
            fired[one.name] = fired.get(one.name, 0) + 1
            limit -= 1
            if limit < 0:
                raise BugError(f"rules undo each other without end around node '{node.name}' (last: {one.name})")
            fresh = [n for n in touched if n.order >= 0 and id(n) not in queued]
            queued.update(map(id, fresh))
            pending.extend(fresh)
            break


def _try(one: Rule, pattern: Op, root: Node, scope: Graph) -> list[Node] | None:
    """Applies a rule at a node; returns the nodes worth looking at again, or None where it does not apply."""
    found = match(pattern, root, scope, one.shared)
    if found is None:
        return None
    if len(root.outputs) > 1 and any(t.name and (t.outputs or scope.is_output(t)) for t in root.outputs[1:]):
        return None
    draft = Draft(scope)
    new = one.propose(found, draft)
    if new is None or refusal(one, found, draft, new) is not None:
        return None
    if (journal := scope.root.journal) is None:
        return _commit(found, draft, new)
    if not journal.permits(one, found):
        return None
    touched = _commit(found, draft, new)
    journal.rewrote(one, found, touched[: len(draft.nodes)], new)
    return touched


def refusal(one: Rule, found: Match, draft: Draft, new: Tensor) -> str | None:
    """Which precondition the proposal does not meet, a key of `nearmiss.REASONS`; None where it meets them all."""
    old = found.root.outputs[0]
    if new is old:
        return "same"
    if not _describe(draft):
        return "inference"
    if draft.constants and not one.may_grow and growth(found, draft) > SLACK:
        return "growth"
    drafted = any(new is out for d in draft.nodes for out in d.outputs)
    if not drafted and found.root.op == "Identity" and draft.graph.bridged(old, new):
        return "bridge"  # the Identity is it
    if drafted or one.shape_safe or any(new is made for made in draft.constants):
        return _contradiction(old, new)
    return None if shapes.same_shape(old, new) else "shape"


def _contradiction(old: Tensor, new: Tensor) -> str | None:
    """In dtype, rank or any dim that is known on both sides; None where there is none."""
    if old.dtype is not None and new.dtype is not None and np.dtype(old.dtype) != np.dtype(new.dtype):
        return "dtype"
    if old.shape is None or new.shape is None:
        return None
    if len(old.shape) != len(new.shape):
        return "shape"
    pairs = zip(old.shape, new.shape, strict=True)
    return None if all(m == n for m, n in pairs if isinstance(m, int) and isinstance(n, int)) else "shape"


def growth(found: Match, draft: Draft) -> float:
    """Bytes that the file would grow by, less 1 % of what dies."""
    inside = {id(n) for n in found.nodes}
    read = {id(t) for d in draft.nodes for t in d.inputs if t is not None}
    dying = {
        id(t): nbytes(t)
        for node in found.nodes
        for t in node.inputs
        if isinstance(t, Constant) and id(t) not in read and all(id(r) in inside for r in t.outputs)
    }
    return sum(map(nbytes, draft.constants)) - 1.01 * sum(dying.values())


def _describe(draft: Draft) -> bool:
    """Gives drafted tensors their dtype and shape by the operators' own inference; False where it objects."""
    for drafted in draft.nodes:
        inputs = [t for t in drafted.inputs if t is not None]
        if drafted.domain or any(t.dtype is None for t in inputs):
            continue
        kinds = tuple(None if t is None else _kind(t) for t in drafted.inputs)
        try:
            made = _types(drafted, draft.graph, kinds)
        except (onnx.defs.SchemaError, shape_inference.InferenceError):
            return False
        for out, kind in zip(drafted.outputs, made, strict=True):
            if kind is not None:
                _take(out, kind)
    return True


def _types(drafted: Drafted, graph: Graph, kinds: tuple[Kind | None, ...]) -> Sequence[onnx.TypeProto | None]:
    """What inference says of each output of a node whose inputs are of these kinds."""
    values = drafted.attrs.values()
    if drafted.op in BY_TYPE and all(isinstance(v, int | list) for v in values):
        attrs = tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in drafted.attrs.items())
        return _remembered(drafted.op, attrs, graph.opset, kinds)
    places = ((i, t) for i, t in enumerate(drafted.inputs) if isinstance(t, Constant) and graph.is_constant(t))
    small = {f"t{i}": _small(t) for i, t in places if nbytes(t) <= SLACK}
    return _inferred(drafted, graph.opset, kinds, small)


@lru_cache(1 << 10)
def _remembered(op: str, attrs: Any, opset: int, kinds: tuple[Kind | None, ...]) -> Sequence[onnx.TypeProto | None]:
    inputs = tuple(None if kind is None else Variable("any", *kind) for kind in kinds)
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in attrs}
    return _inferred(Drafted(op, inputs, (Variable("one"),), given, ""), opset, kinds, {})


def _inferred(
    drafted: Drafted, opset: int, kinds: Sequence[Kind | None], small: Mapping[str, onnx.TensorProto]
) -> Sequence[onnx.TypeProto | None]:
    names = ["" if t is None else f"t{i}" for i, t in enumerate(drafted.inputs)]
    outputs = [f"out{i}" for i in range(len(drafted.outputs))]
    types = {name: type_proto(*kind) for name, kind in zip(names, kinds, strict=True) if kind is not None}
    proto = to_node(drafted.op, names, outputs, drafted.attrs)
    schema, imports = _operator(drafted.op, opset)
    made = shape_inference.infer_node_outputs(schema, proto, types, dict(small), None, imports, 10)
    return [made.get(name) for name in outputs]


@cache
def _operator(op: str, opset: int) -> tuple[onnx.defs.OpSchema, list[onnx.OperatorSetIdProto]]:
    return onnx.defs.get_schema(op, opset, ""), [helper.make_opsetid("", opset)]


def _kind(tensor: Tensor) -> Kind:
    return np.dtype(tensor.dtype), None if tensor.shape is None else tuple(tensor.shape)


def _small(tensor: Constant) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(peek(tensor)).reshape(tensor.shape))


def _take(out: Variable, kind: onnx.TypeProto) -> None:
    tensor = kind.tensor_type
    if tensor.elem_type:
        out.dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if tensor.HasField("shape"):
        out.shape = [dim(d) for d in tensor.shape.dim]


def _commit(found: Match, draft: Draft, new: Tensor) -> list[Node]:
    """Joins the drafted nodes; where one of them makes the result, it takes over the old output tensor itself."""
    graph, root = draft.graph, found.root
    old = root.outputs[0]
    readers = list(old.outputs)
    for made in draft.constants:
        made.name = graph.fresh(made.name)
    nodes = []
    before = root
    adopted = False
    described = all(_settled(out) for d in draft.nodes for out in d.outputs)
    root.outputs[0] = Variable.empty()
    for drafted in draft.nodes:
        outputs = []
        for out in drafted.outputs:
            if out is new:
                outputs.append(old)
                adopted = True
            else:
                out.name = graph.fresh(f"{old.name}_{out.name}")
                outputs.append(out)
        inputs = [old if t is new else t for t in drafted.inputs]
        nodes.append(
            graph.add(drafted.op, inputs, outputs, dict(drafted.attrs), drafted.domain, root.name, before, described)
        )
    read = [t for n in [*found.nodes, *nodes] for t in n.inputs]
    sources = [t.inputs[0] for n in [root, *nodes] for t in n.inputs if t.inputs]
    graph.remove(root)
    if adopted:
        _refine(graph, old, new)
    else:
        graph.replace(old, new)
    _prune(graph, found.nodes[1:])
    last = [t.outputs[0] for t in read if len(t.outputs) == 1]  # only readers now, which G1 may have held back
    return [*nodes, *readers, *sources, *last]


def _settled(out: Tensor) -> bool:
    """True where inference has nothing to add: shapes may be calculated from what integers and booleans hold."""
    if out.dtype is None or np.dtype(out.dtype).kind in "iub" or out.shape is None:
        return False
    return all(dim is not None for dim in out.shape)


def _refine(graph: Graph, old: Tensor, new: Tensor) -> None:
    """Takes over what is known of the new tensor's type and shape and was not of the old one's."""
    known = old.dtype, old.shape
    old.dtype = new.dtype if old.dtype is None else old.dtype
    if old.shape is None or new.shape is None:
        old.shape = new.shape if old.shape is None else old.shape
    else:
        old.shape = [n if d is None else d for d, n in zip(old.shape, new.shape, strict=True)]
    if known != (old.dtype, old.shape):
        graph.edited()


def _prune(graph: Graph, nodes: Sequence[Node]) -> None:
    """Removes the matched inner nodes that nothing reads any more."""
    pending = list(nodes)
    while pending:
        unread = [n for n in pending if not any(t.name and (t.outputs or graph.is_output(t)) for t in n.outputs)]
        for node in unread:
            graph.remove(node)
        pending = [n for n in pending if n.order >= 0] if unread else []
