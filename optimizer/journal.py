"""What passes did to a graph, kept only while somebody asks: which rewrite made which nodes of which others.

A `Journal` is an instrument. Rules report to it through the rule engine; what a pass does besides is read off the graph
before and after the step, by names, which are never used twice. A normal run has no journal and pays nothing.

    origin  of a node: the nodes of the model as it came that it stands for
    edit    one rewrite: the nodes it took, those it made, and the tensor that stands for their result
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optimizer.context import Context
from optimizer.decode import ORIGIN
from optimizer.graph import Graph, Node, Tensor
from optimizer.manager import Step

if TYPE_CHECKING:
    from optimizer.match import Match
    from optimizer.rewrite import Rule

METADATA = 10  # the IR version from which nodes have metadata
BRIDGE = "bridge"  # the "rule" that ties an output to a tensor which cannot take its name


@dataclass(frozen=True)
class Edit:
    """One rewrite. `rule` is '' for what a pass does by itself; `into` is '' where nobody read the result.

    Where `took` and `made` are the same node, it stayed and reads `into` instead of `instead_of`.
    """

    step: str
    rule: str
    took: tuple[str, ...]
    made: tuple[str, ...] = ()
    into: str = ""
    instead_of: str = ""

    @property
    def by(self) -> str:
        """The rule, or else the pass without its options."""
        return self.rule or self.step.partition("{")[0]


@dataclass(frozen=True)
class _Seen:
    """A graph at one moment: what every node reads (names of tensors), and which node makes each tensor."""

    reads: dict[str, tuple[str, ...]]
    makers: dict[str, str]
    ops: dict[str, str]


@dataclass
class Journal:
    """An instrument that writes down every rewrite.

    `limit`: how many rewrites by rules may happen; of the last one the graph just before it is kept as `before`, its
    nodes as `matched`, its rule as `last`. `applied` holds the rules that passes tried, by pass and name, and whether
    with fast-math.
    """

    limit: int | None = None
    fired: int = 0
    edits: list[Edit] = field(default_factory=list)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ops: dict[str, str] = field(default_factory=dict)  # operators of all nodes there ever were
    applied: dict[tuple[str, str], tuple[Rule, bool]] = field(default_factory=dict)
    before: Graph | None = None
    matched: tuple[str, ...] = ()
    last: str = ""
    _step: str = ""
    _by: dict[str, list[str]] = field(default_factory=dict)  # what made a node in runs before this one

    def start(self, graph: Graph) -> None:
        """Takes the graph as the one that origins are nodes of. A graph whose journal was kept goes on from there."""
        graph.journal = self
        for node in graph.walk():
            self.ops[node.name] = node.op
            kept = json.loads(node.metadata[ORIGIN]) if ORIGIN in node.metadata else {"from": [node.name], "by": []}
            self.origin[node.name], self._by[node.name] = tuple(kept["from"]), kept["by"]

    # ---------------------------------------------------------------- what the rule engine tells

    def applies(self, rules: Sequence[Rule], fast_math: bool) -> None:
        """A pass tries these rules."""
        for one in rules:
            self.applied[self._step.partition("{")[0], one.name] = one, fast_math

    def permits(self, one: Rule, found: Match) -> bool:
        """Asked before each rewrite; False once the limit is reached."""
        if self.limit is not None and self.fired >= self.limit:
            return False
        self.fired += 1
        if self.fired == self.limit:
            self.before, self.matched, self.last = found.graph.root.copy(), tuple(n.name for n in found.nodes), one.name
        return True

    def rewrote(self, one: Rule, found: Match, made: Sequence[Node], new: Tensor) -> None:
        """Told after each rewrite; `new` stands for the result of the matched root."""
        took, names = tuple(n.name for n in found.nodes), tuple(n.name for n in made)
        self.ops.update((node.name, node.op) for node in made)
        self._write(Edit(self._step, one.name, took, names, made[-1].outputs[0].name if made else new.name))

    def _write(self, edit: Edit) -> None:
        self.edits.append(edit)
        origin = dict.fromkeys(one for name in edit.took for one in self.origin.get(name, ()))
        self.origin.update(dict.fromkeys(edit.made, tuple(origin)))

    # ---------------------------------------------------------------- what a step did besides

    @contextmanager
    def around(self, step: Step, graph: Graph, ctx: Context) -> Iterator[None]:
        """Compares the graph before and after; the steps inside a composite one are compared themselves."""
        if graph.journal is not self:
            self.start(graph)
        self._step, before, known = step.name, _see(graph), len(self.edits)
        yield
        if step.count and not step.children:
            self._besides(before, _see(graph), self.edits[known:])

    def _besides(self, before: _Seen, after: _Seen, rewrites: Sequence[Edit]) -> None:
        self.ops.update(after.ops)
        by_rule = {name: edit for edit in rewrites for name in edit.took}
        there = [*before.ops, *(name for edit in rewrites for name in edit.made)]
        gone = [name for name in there if name not in after.ops and name not in by_rule]
        follow = _Followed(before, after, by_rule)
        into = {name: follow.node(name) for name in gone}
        taken = self._made(before, after, by_rule, into)
        for name in gone:
            if name not in taken:
                self._write(Edit(self._step, "", (name,), into=into[name]))
        self._rewired(before, after)

    def _made(self, before: _Seen, after: _Seen, by_rule: Mapping[str, Edit], into: Mapping[str, str]) -> set[str]:
        """Writes down the nodes that a pass made by itself; returns those in whose place they are.

        A new node stands for the node that made its output before, and for those whose readers read it now; one that
        only serves new nodes stands for what these stand for.
        """
        fresh = [name for name in after.ops if name not in before.ops and name not in self.origin]
        stands: dict[str, dict[str, None]] = {name: {} for name in fresh}
        results: dict[str, str] = {}
        for tensor, maker in after.makers.items():
            if maker in stands:
                results.setdefault(maker, tensor)
                stands[maker].update({before.makers[tensor]: None} if tensor in before.makers else {})
        for name, tensor in into.items():
            if (maker := after.makers.get(tensor, "")) in stands:
                stands[maker][name] = None
        direct = {name for name in fresh if stands[name]}
        for name in reversed(fresh):
            for maker in (after.makers.get(tensor, "") for tensor in after.reads[name]):
                if maker in stands and maker not in direct:
                    stands[maker].update(stands[name])
        for name in fresh:
            bridging = after.ops[name] == "Identity" and name in direct and by_rule.keys() >= stands[name].keys()
            rule = BRIDGE if bridging else ""
            self._write(Edit(self._step, rule, tuple(stands[name]), (name,), results.get(name, "")))
        return {name for taken in stands.values() for name in taken}

    def _rewired(self, before: _Seen, after: _Seen) -> None:
        """Writes down the nodes that stayed and read something else, though what they read before is still made."""
        for name, now in after.reads.items():
            then = before.reads.get(name, now)
            for old, new in zip(then, now, strict=False):
                if old == new or not old or not new:
                    continue
                maker, makes = before.makers.get(old), after.makers.get(new)
                renamed, gone = makes is not None and makes == maker, maker is not None and maker not in after.ops
                if renamed or gone:
                    continue
                self._write(Edit(self._step, "", (name,), (name,), new, old))

    # ---------------------------------------------------------------- what is left of it in the graph

    def keep(self, graph: Graph) -> None:
        """Puts what every node was made of and by into its metadata; nodes that are as they came get nothing."""
        by = dict(self._by)
        for edit in self.edits:
            chain = [*(step for name in edit.took for step in by.get(name, ())), edit.by]
            by.update((name, list(dict.fromkeys(chain))) for name in edit.made)
        for node in graph.walk():
            if by.get(node.name):
                kept = {"from": self.origin[node.name], "by": by[node.name]}
                node.metadata = node.metadata | {ORIGIN: json.dumps(kept)}


@contextmanager
def recording(graph: Graph) -> Iterator[tuple[Journal]]:
    """A journal for a run of passes on the graph, whose nodes keep what it says of them."""
    journal = Journal()
    journal.start(graph)
    yield (journal,)
    journal.keep(graph)
    graph.journal = None


class _Followed:
    """Where the result of a node that is gone went: the tensor that its readers read now."""

    def __init__(self, before: _Seen, after: _Seen, by_rule: Mapping[str, Edit]):
        self.before, self.after, self.by_rule = before, after, by_rule
        self.outputs: dict[str, list[str]] = {}
        for tensor, maker in before.makers.items():
            self.outputs.setdefault(maker, []).append(tensor)
        self.readers: dict[str, list[tuple[str, int]]] = {}
        for name, tensors in before.reads.items():
            for place, tensor in enumerate(tensors):
                self.readers.setdefault(tensor, []).append((name, place))

    def node(self, name: str) -> str:
        """The tensor, or '' where nobody read the result; what went with its reader went where that did."""
        pending, seen = [name], {name}
        while pending:
            for tensor in self.outputs.get(pending.pop(), ()):
                if tensor in self.after.makers:
                    return tensor
                for reader, place in self.readers.get(tensor, ()):
                    if reader in self.by_rule:
                        return self.by_rule[reader].into
                    if reader not in self.after.ops:
                        pending += [] if reader in seen else [reader]
                        seen.add(reader)
                    elif place < len(now := self.after.reads[reader]):
                        return now[place]
        return ""


def _see(graph: Graph) -> _Seen:
    seen = _Seen({}, {}, {})
    for node in graph.walk():
        seen.ops[node.name] = node.op
        seen.reads[node.name] = tuple(t.name for t in node.inputs)
        seen.makers.update((t.name, node.name) for t in node.outputs if t.name)
    return seen
