"""A thin `Graph` over onnx-graphsurgeon's tensors and nodes, edited only through the methods below.

It keeps four invariants that raw graphsurgeon does not: tensor names are unique over all scopes, nodes are
compared by identity, the model's interface (`Header`) is kept as the protobufs it came with, and a subgraph
(the body of If, Loop or Scan) is a `Graph` of its own, held in its node's `attrs`, whose captures of outer
tensors appear among those tensors' readers.

`graphsurgeon.fold_constants`, `.toposort` and `.layer` are never called: they miscompile, recurse or crawl.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from optimizer.ir import Array, Constant, Dim, PlainGraph, PlainNode, Tensor, Variable, linked, peek
from optimizer.names import Names
from optimizer.order import in_order, reads

if TYPE_CHECKING:
    from optimizer.journal import Journal

__all__ = ["Array", "Constant", "Dim", "Graph", "Header", "Names", "Node", "Tensor", "Variable", "peek"]


class Node(PlainNode):
    """A node that equals only itself and knows its scope, its place there, and what the file says of it.

    Made without graphsurgeon's own constructor, which takes half of the time to read a large model.
    """

    order: float  # place in its scope; negative once removed
    scope: Graph | None
    overload: str
    doc: str
    metadata: dict[str, str]
    devices: list[Any]  # NodeDeviceConfigurationProto, kept as they are

    def __init__(
        self,
        op: str,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        inputs: Iterable[Tensor] = (),
        outputs: Iterable[Tensor] = (),
        domain: str | None = None,
    ) -> None:
        self.__dict__.update(
            op=op, name=name, attrs={} if attrs is None else attrs, domain=domain, order=0.0, scope=None, overload="",
            doc="", metadata={}, devices=[],
        )  # fmt: skip
        self.__dict__["inputs"] = linked(self, "outputs", inputs)
        self.__dict__["outputs"] = linked(self, "inputs", outputs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("inputs", "outputs"):
            super().__setattr__(name, value)  # readers and makers follow
        else:
            self.__dict__[name] = value

    __eq__ = object.__eq__  # not written in Python: long lists of readers are searched by it
    __hash__ = object.__hash__

    def bodies(self) -> Iterator[Graph]:
        """The subgraphs held by this node, in attribute order."""
        return iter([v for v in self.attrs.values() if v.__class__ is Graph] if self.attrs else ())


@dataclass
class Header:
    """What a model says of itself besides its graph; written back exactly as it was read."""

    ir_version: int
    imports: dict[str, int]
    inputs: list[onnx.ValueInfoProto]
    outputs: list[onnx.ValueInfoProto]
    model: onnx.ModelProto  # everything else: producer, domain, version, doc, metadata (no graph inside)
    annotations: list[onnx.TensorAnnotation] = field(default_factory=list)


class Graph:
    """One scope of a model: its nodes, inputs and outputs, and the names shared with its subgraphs.

    `header` is None for a subgraph. Two tables of the outermost scope hold initializers that stay, read or not:
    `overridable` those that are graph inputs too (their values are defaults, not constants; where callers may give
    another shape, nodes read a Variable of that name), `annotating` those that quantization annotations name.
    `declared` keeps what a subgraph says of its own inputs and outputs.
    """

    journal: Journal | None = None  # of the outermost scope, while somebody asks what passes do; copies have none

    def __init__(self, ir: PlainGraph, names: Names, header: Header | None = None, parent: Graph | None = None):
        self.ir = ir
        self.names = names
        self.header = header
        self.parent = parent
        self.nested = False  # of the outermost scope: whether it has ever had a subgraph, nearly no model has
        if parent is not None:
            parent.root.nested = True
        self.overridable: dict[str, Constant] = {}
        self.annotating: dict[str, Constant] = {}
        self.metadata: dict[str, str] = {}
        self.declared: dict[str, onnx.ValueInfoProto] = {}
        self.notes: dict[str, str] = {}  # why a node stayed in float, by its name; never written to the file
        self.reports: dict[str, Any] = {}  # what passes say of what they did, for the manifest; JSON values
        self.edits = 0  # that may have changed types or shapes, here or in a subgraph; counted in the outermost
        self.inferred = -1  # how many there had been when shapes were last inferred
        self.hints = False  # whether inference may find more since then, all that it found being true still
        self.patient = False  # whether it is put off while there are but hints
        self.grown = 0  # bytes that constant folding has added to the file so far, over all its runs
        self._dead = 0

    def adopt(self) -> None:
        """Makes the nodes and outputs just put into `ir` this scope's own."""
        self.names.outputs.update(t.name for t in self.ir.outputs)
        for place, node in enumerate(self.ir.nodes, 1):
            node.__dict__.update(order=float(place), scope=self)

    # ---------------------------------------------------------------- reading

    @property
    def nodes(self) -> list[Node]:
        """The live nodes of this scope, in execution order after `tidy()`."""
        if self._dead:
            self.ir.nodes = [n for n in self.ir.nodes if n.order >= 0]
            self._dead = 0
        return self.ir.nodes

    @property
    def inputs(self) -> list[Tensor]:
        return self.ir.inputs

    @property
    def outputs(self) -> list[Tensor]:
        return self.ir.outputs

    @property
    def root(self) -> Graph:
        return self if self.parent is None else self.parent.root

    @property
    def imports(self) -> dict[str, int]:
        """Operator set versions by domain ('' is the standard one)."""
        header = self.root.header
        assert header is not None
        return header.imports

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.imports.get("", 1)

    def scopes(self) -> Iterator[Graph]:
        """This graph and every subgraph in it, outermost first."""
        pending = [self]
        nested = self.root.nested
        while pending:
            scope = pending.pop()
            yield scope
            if not nested:
                continue
            held = [v for node in scope.nodes if node.attrs for v in node.attrs.values() if v.__class__ is Graph]
            pending.extend(reversed(held))

    def walk(self) -> Iterator[Node]:
        """Every node, those of subgraphs included."""
        for scope in self.scopes():
            yield from list(scope.nodes)

    def tensors(self) -> dict[str, Tensor]:
        """Every named tensor reachable in this graph and its subgraphs, by name."""
        found: dict[str, Tensor] = {}
        for scope in self.scopes():
            ends = (each for node in scope.nodes for each in (node.inputs, node.outputs))
            for tensors in (scope.inputs, scope.outputs, *ends):
                for tensor in tensors:
                    if tensor.name and tensor.name not in found:
                        found[tensor.name] = tensor
        return found

    def constants(self) -> dict[str, Constant]:
        """Initializers in use by name, those of subgraphs and the overridable ones included."""
        found: dict[str, Constant] = {}
        for scope in self.scopes():
            for tensors in (scope.outputs, *(n.inputs for n in scope.nodes)):
                for tensor in tensors:
                    if isinstance(tensor, Constant) and tensor.name not in found:
                        found[tensor.name] = tensor
        return found

    def is_output(self, tensor: Tensor) -> bool:
        """True where the tensor is an output of this graph or of any scope of the same model."""
        return tensor.name in self.names.outputs

    def is_input(self, tensor: Tensor) -> bool:
        """True for an input of this scope, and for an initializer that callers may override."""
        return any(t is tensor for t in self.inputs) or tensor.name in self.root.overridable

    def only_feeds(self, tensor: Tensor, node: Node) -> bool:
        """True where nothing but `node` reads the tensor: no other node, no capture, no graph output (G1)."""
        return all(reader is node for reader in tensor.outputs) and not self.is_output(tensor)

    def is_constant(self, tensor: Tensor) -> bool:
        """True for an initializer that no caller can override (G2)."""
        return isinstance(tensor, Constant) and tensor.name not in self.root.overridable

    def array(self, tensor: Tensor) -> Array | None:
        """The value of a true constant, read-only, or None. Stored weights are read anew, never cached."""
        return peek(tensor) if isinstance(tensor, Constant) and self.is_constant(tensor) else None

    # ---------------------------------------------------------------- editing

    def edited(self) -> None:
        """Says that types and shapes may not be what they were.

        What edits otherwise than by the methods below must call it. They call it themselves, except where a tensor that
        no shape is calculated from (as one of integers may be) comes in the place of one of the same type and shape.
        """
        self.root.edits += 1

    @contextmanager
    def equal(self) -> Iterator[None]:
        """Edits in here put equal values in the place of others: types and shapes stay true, and are hints at most."""
        root = self.root
        before = root.edits
        yield
        root.hints |= root.edits != before
        root.edits = before

    def fresh(self, hint: str) -> str:
        return self.names.fresh(hint)

    def constant(self, values: Array, hint: str = "const") -> Constant:
        """A new initializer; `values` must not be written to afterwards."""
        return Constant(self.fresh(hint), np.asarray(values))

    def variable(self, hint: str, dtype: Any = None, shape: Sequence[Dim] | None = None) -> Variable:
        return Variable(self.fresh(hint), dtype, None if shape is None else list(shape))

    def add(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        attrs: dict[str, Any] | None = None,
        domain: str = "",
        name: str = "",
        before: Node | None = None,
        described: bool = False,
    ) -> Node:
        """Appends a node; None stands for an omitted optional input. `before` keeps the printed order close.

        `described`: dtypes and shapes of the outputs are what inference says.
        """
        node = Node(
            op,
            self.fresh(name or op),
            dict(attrs or {}),
            [Variable.empty() if t is None else t for t in inputs],
            list(outputs),
            domain or None,
        )
        node.scope = self
        self.root.nested |= any(node.bodies())
        node.order = len(self.ir.nodes) + 1.0 if before is None else math.nextafter(before.order, 0)
        if not described:
            self.edited()
        self.ir.nodes.append(node)
        if domain and domain not in self.imports:
            self.imports[domain] = 1
        return node

    def set_input(self, node: Node, index: int, tensor: Tensor | None) -> None:
        """Points one input of a node at another tensor (None: omitted)."""
        if tensor is None or len(node.inputs) <= index or not _interchangeable(node.inputs[index], tensor):
            self.edited()
        while len(node.inputs) <= index:
            node.inputs.append(Variable.empty())
        node.inputs[index] = Variable.empty() if tensor is None else tensor
        while node.inputs and not node.inputs[-1].name:
            node.inputs.pop()

    def remove(self, node: Node) -> None:
        """Detaches a node and its subgraphs; its output tensors lose their producer."""
        for inner in [n for body in node.bodies() for n in body.walk()] if node.attrs else ():
            inner.inputs.clear()
        for tensor in node.inputs:
            tensor.outputs.remove(node)
        for tensor in node.outputs:
            tensor.inputs.remove(node)
        list.clear(node.inputs)  # both sides are done
        list.clear(node.outputs)
        node.attrs.clear()
        node.order = -1.0
        (node.scope or self)._dead += 1

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Every reader of `old`, graph outputs included, reads `new` instead; names of outputs survive (G4).

        Where `old` is a graph output, `new` takes its name if it is free to (made by a node of this scope and
        no output itself); otherwise an Identity bridges the two, so the interface never changes.
        """
        if not _interchangeable(old, new):
            self.edited()
        for reader in dict.fromkeys(old.outputs):
            for index, tensor in enumerate(reader.inputs):
                if tensor is old:
                    list.__setitem__(reader.inputs, index, new)
                    new.outputs.append(reader)
        old.outputs.clear()
        if not self.is_output(old):
            return
        for scope in list(self.root.scopes()):
            if any(out is old for out in scope.outputs):
                self._replace_output(scope, old, new)

    def bridged(self, old: Tensor, new: Tensor) -> bool:
        """True where `replace` must put an Identity between the two, because `old` is an output."""
        scopes = (scope for scope in self.root.scopes() if any(t is old for t in scope.outputs))
        return self.is_output(old) and any(not self._free(scope, new) for scope in scopes)

    def _free(self, scope: Graph, new: Tensor) -> bool:
        """True where a tensor can become the scope's output under another name."""
        return bool(new.inputs) and new.inputs[0].scope is scope and not scope.is_output(new)

    def _replace_output(self, scope: Graph, old: Tensor, new: Tensor) -> None:
        producer = old.inputs[0] if old.inputs else None
        if producer is not None:  # it keeps its place, but gives up the output's name
            at = [t is old for t in producer.outputs].index(True)
            producer.outputs[at] = scope.variable(old.name + "_old", old.dtype, old.shape)
        if not self._free(scope, new):
            scope.add("Identity", [new], [old], described=_interchangeable(old, new))
            return
        old.name, new.name = new.name, old.name
        if new.dtype is None:
            new.dtype, new.shape = old.dtype, old.shape
        scope.ir.outputs = [new if out is old else out for out in scope.outputs]  # an output may be listed twice

    def bypass(self, node: Node, tensor: Tensor) -> None:
        """Replaces a single-output node by an existing tensor and removes it."""
        out = node.outputs[0]
        self.remove(node)
        self.replace(out, tensor)

    def inline(self, node: Node, body: Graph) -> None:
        """Puts a subgraph without inputs in the place of the node that holds it; its results stand for the node's."""
        assert node.scope is self and not body.inputs
        self.edited()
        outputs, results, moved = list(node.outputs), list(body.outputs), list(body.nodes)
        node.attrs = {key: value for key, value in node.attrs.items() if value is not body}
        for inner in moved:
            inner.scope, inner.order = self, math.nextafter(node.order, 0)
            for nested in inner.bodies():
                nested.parent = self
        self.nodes.extend(moved)
        self.names.outputs.difference_update(t.name for t in results)
        self.remove(node)
        for old, new in zip(outputs, results, strict=True):
            if old.name:
                self.replace(old, new)

    def paste(self, body: Graph, inputs: Sequence[Tensor], before: Node) -> list[Tensor]:
        """Puts a copy of a subgraph's nodes here, with `inputs` in the place of its own; returns what it results in.

        Everything made by the copy has a new name; constants and captured tensors are shared.
        """
        self.edited()
        own = {id(t) for scope in body.scopes() for t in scope.inputs}
        own.update(id(t) for node in body.walk() for t in node.outputs)
        read = [t for scope in body.scopes() for t in scope.outputs] + [t for n in body.walk() for t in n.inputs]
        known = {id(t): t for t in read if id(t) not in own}
        known.update(zip(map(id, body.inputs), inputs, strict=True))
        twin = _copy(body, self.names, known, self, fresh=True)
        for node in twin.nodes:
            node.scope, node.order = self, math.nextafter(before.order, 0)
            for nested in node.bodies():
                nested.parent = self
        self.nodes.extend(twin.nodes)
        return list(twin.outputs)

    def take(self, node: Node, before: Node) -> None:
        """Moves a node here from the subgraph of one of this scope's nodes, to stand before that one."""
        assert node.scope is not None and node.scope.parent is self
        self.edited()
        node.scope.nodes.remove(node)
        node.scope, node.order = self, math.nextafter(before.order, 0)
        self.nodes.append(node)

    def become(self, other: Graph) -> None:
        """Takes over the nodes of another model with the same interface, which is not to be used afterwards."""
        assert self.parent is None and other.parent is None
        self.edited()
        self.ir, self.names, self.header, self._dead = other.ir, other.names, other.header, other._dead
        self.overridable, self.annotating, self.notes = other.overridable, other.annotating, other.notes
        self.reports, self.nested = other.reports, other.nested
        for node in self.nodes:
            node.scope = self
            for body in node.bodies():
                body.parent = self

    def drop_output(self, index: int) -> None:
        """Takes one output off this subgraph's list (never the model's); what made it may be swept then."""
        assert self.parent is not None
        self.edited()
        tensor = self.ir.outputs.pop(index)
        if not any(t is tensor for t in self.ir.outputs):
            self.names.outputs.discard(tensor.name)

    # ---------------------------------------------------------------- order

    def name_nodes(self) -> None:
        """Gives a name of its own to every node that has none or shares one, so that reports can point at it."""
        seen: set[str] = set()
        for node in self.walk():
            if not node.name or node.name in seen:
                node.name = self.fresh(node.name or node.op)
            seen.add(node.name)

    def tidy(self) -> None:
        """Sorts every scope stably (Kahn, no recursion); captures of a subgraph count as inputs of its node."""
        nested = self.root.nested
        for scope in self.scopes():
            scope.ir.nodes = in_order(scope.nodes, nested)

    def sweep(self) -> int:
        """Removes nodes whose results nobody reads, in every scope; graph inputs stay. Returns how many."""
        removed, results = 0, self.names.outputs
        for scope in reversed(list(self.scopes())):
            pending = list(scope.nodes)
            while pending:
                node = pending.pop()
                if node.order < 0 or any(t.outputs or t.name in results for t in node.outputs if t.name):
                    continue
                makers = [m for t in reads(node) for m in t.inputs if m.scope is scope]
                scope.remove(node)
                removed += 1
                pending.extend(makers)
        return removed

    def copy(self) -> Graph:
        """An independent graph with the same names; arrays and stored weights are shared, never copied."""
        assert self.parent is None and self.header is not None
        twin = _copy(self, copy.deepcopy(self.names), {}, None)
        twin.header, twin.grown, twin.notes = copy.deepcopy(self.header), self.grown, dict(self.notes)
        twin.reports = dict(self.reports)
        used = twin.constants()
        for own, copied in ((self.overridable, twin.overridable), (self.annotating, twin.annotating)):
            copied.update({name: used[name] if name in used else c.copy() for name, c in own.items()})
        return twin


def _interchangeable(old: Tensor, new: Tensor) -> bool:
    """True where inference finds the same, whichever of the two is read: by what is known of them by now.

    It looks into a constant that may be the scales of a Resize or an end of a Range.
    """
    if isinstance(new, Constant) and len(new.shape) < 2:
        return False
    return (
        old.dtype is not None
        and old.dtype == new.dtype
        and np.dtype(old.dtype).kind not in "iub"
        and old.shape is not None
        and new.shape is not None
        and list(old.shape) == list(new.shape)
    )


def _copy(scope: Graph, names: Names, known: dict[int, Tensor], parent: Graph | None, *, fresh: bool = False) -> Graph:
    """A copy under the same names, which must then be another model's, or under `fresh` ones in the same model."""

    def name(old: str) -> str:
        return names.fresh(old) if fresh else old

    def twin(tensor: Tensor) -> Tensor:
        if not tensor.name:
            return Variable.empty()
        if id(tensor) not in known:
            new = tensor.copy()
            new.name = name(tensor.name)
            if isinstance(new, Variable):
                new.shape = None if tensor.shape is None else list(tensor.shape)
                new.type = tensor.type
            known[id(tensor)] = new
        return known[id(tensor)]

    inputs = [twin(t) for t in scope.inputs]
    ir = PlainGraph(inputs=inputs, name=scope.ir.name, doc_string=scope.ir.doc_string)
    graph = Graph(ir, names, parent=parent)
    graph.metadata = dict(scope.metadata)
    for node in scope.nodes:
        attrs = {k: v for k, v in node.attrs.items() if not isinstance(v, Graph)}
        inputs, outputs = [twin(t) for t in node.inputs], [twin(t) for t in node.outputs]
        new = Node(node.op, name(node.name), {}, inputs, outputs, node.domain)
        new.attrs.update({k: attrs.get(k) for k in node.attrs})
        new.order, new.scope = node.order, graph
        new.overload, new.doc, new.metadata, new.devices = node.overload, node.doc, dict(node.metadata), node.devices
        graph.ir.nodes.append(new)
    for node, new in zip(scope.nodes, graph.ir.nodes, strict=True):  # bodies last: they capture any tensor here
        for key, body in ((k, v) for k, v in node.attrs.items() if isinstance(v, Graph)):
            new.attrs[key] = _copy(body, names, known, graph, fresh=fresh)
            names.outputs.update(t.name for t in new.attrs[key].outputs)
    graph.ir.outputs = [twin(t) for t in scope.outputs]
    ends = ((t, twin(t)) for t in (*scope.inputs, *scope.outputs))
    graph.declared = {new.name: scope.declared[old.name] for old, new in ends if old.name in scope.declared}
    return graph
