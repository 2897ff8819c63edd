"""Rules that fit a graph by structure and still do not fire, each with the precondition that keeps it.

Looked for in the finished graph: where no rule fires any more, every fit has its reason. A pattern of one operator fits
every such operator, so that its rule's own guard declines is no news and is left out.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from optimizer import shapes
from optimizer.graph import Array, Constant, Graph, Node, Tensor
from optimizer.match import Match, Op, fits, obstacle
from optimizer.rewrite import Draft, Rule, growth, refusal
from optimizer.text import kind

TraceFunction = Callable[[FrameType, str, Any], Any]  # what sys.settrace takes
REASONS = {
    "reader": "an inner result has another reader",
    "output": "an inner result is an output of its graph",
    "results": "a node has further results that are read",
    "scope": "the nodes are in different subgraphs",
    "impure": "an operator is random, custom, or in training mode",
    "overridable": "a value is a default that callers may override",
    "variable": "a value is not a constant",
    "guard": "the rule's own guard says no",
    "opset": "the operator set is too old",
    "fast-math": "NaN or -0 could change; only with fast-math",
    "growth": "the file would grow",
    "dtype": "the dtype would change",
    "shape": "the shapes are not provably equal",
    "inference": "the operators do not take these types and shapes",
    "bridge": "an Identity must tie the output to its tensor",
    "same": "nothing would change",
    "open": "it would fire: run the pass again",
}
DECLINED = ("guard", "variable", "overridable", "same")  # by the rule itself
TRIED = 16  # ways to fit at one node


@dataclass(frozen=True)
class Miss:
    """One rule at one node. `reason` is a key of REASONS, `detail` names the tensor or node in the way."""

    step: str
    rule: str
    nodes: tuple[Node, ...]
    reason: str
    detail: str = ""
    trivial: bool = False  # a pattern of one operator, declined by the rule itself

    @property
    def text(self) -> str:
        return f"{REASONS[self.reason]}: {self.detail}" if self.detail else REASONS[self.reason]


@dataclass
class _Watched(Draft):
    """A draft that remembers which values a rule asked for in vain."""

    refused: list[tuple[str, Tensor]] = field(default_factory=list)

    def array(self, tensor: Tensor | None) -> Array | None:
        value = super().array(tensor)
        if tensor is not None and tensor.name and value is None:
            self.refused.append(("overridable" if isinstance(tensor, Constant) else "variable", tensor))
        return value


@dataclass
class _Heard:
    """Listens to which line of a rule declines: that of the first function to return None after the last line run."""

    lines: dict[int, tuple[str, int]] = field(default_factory=dict)  # by frame, the line before the one at work
    latest: dict[int, tuple[str, int]] = field(default_factory=dict)
    places: list[tuple[tuple[str, int], tuple[str, int]]] = field(default_factory=list)

    def propose(self, one: Rule, found: Match, draft: Draft) -> Tensor | None:
        """What the rule itself would return."""
        previous = sys.gettrace()
        sys.settrace(self._hear)
        try:
            return one.propose(found, draft)
        finally:
            sys.settrace(previous)

    def _hear(self, frame: FrameType, event: str, value: Any) -> TraceFunction | None:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            self.places.clear()
            self.lines[id(frame)] = self.latest.get(id(frame), place)
            self.latest[id(frame)] = place
        elif event == "return" and value is None:
            self.places.append((self.lines.get(id(frame), place), place))
        return self._hear

    def told(self) -> str:
        """The condition, and where it stands; '' where the source is not at hand."""
        if not self.places:
            return ""
        before, last = self.places[0]
        text = linecache.getline(*last).strip()
        text = linecache.getline(*before).strip() if text in ("return None", "return") else text
        return f"{text.removesuffix(':')} ({Path(last[0]).name}:{last[1]})" if text else ""


def near_misses(graph: Graph, applied: Mapping[tuple[str, str], tuple[Rule, bool]]) -> list[Miss]:
    """What each rule of `Journal.applied` lacks, node by node, the pass's order of rules within a node."""
    shapes.infer(graph)
    table: dict[str, list[tuple[str, Rule, Op, bool]]] = {}
    for (step, _), (one, fast_math) in applied.items():
        for pattern in one.patterns:
            for op in pattern.ops:
                table.setdefault(op, []).append((step, one, pattern, fast_math))
    found: dict[tuple[str, str, str], Miss] = {}
    for scope in list(graph.scopes()):
        for node in scope.nodes:
            for step, one, pattern, fast_math in table.get(node.op, ()) if not node.domain else ():
                if (miss := _miss(step, one, pattern, node, scope, fast_math)) is not None:
                    found.setdefault((step, one.name, node.name), miss)
    return list(found.values())


def _miss(step: str, one: Rule, pattern: Op, node: Node, scope: Graph, fast_math: bool) -> Miss | None:
    ways = [found for found, _ in zip(fits(pattern, node, scope), range(TRIED), strict=False)]
    if not ways:
        return None
    found = next((way for way in ways if obstacle(way, one.shared) is None), ways[0])
    reason, detail = _why(one, found, fast_math)
    trivial = reason in ("guard", "variable", "overridable", "same") and not any(
        isinstance(a, Op) for a in pattern.args
    )
    return Miss(step, one.name, tuple(found.nodes), reason, detail, trivial)


def _why(one: Rule, found: Match, fast_math: bool) -> tuple[str, str]:
    """The first precondition that fails, in the engine's order; the rule is asked before what it needs is."""
    if (stop := obstacle(found, one.shared)) is not None:
        return stop[0], _place(stop[0], stop[1], found)
    if read := [t.name for t in found.root.outputs[1:] if t.name and (t.outputs or found.graph.is_output(t))]:
        return "results", f"'{read[0]}'"
    draft, heard = _Watched(found.graph), _Heard()
    try:
        new = heard.propose(one, found, draft)
    except Exception:  # written for later operator sets than the model's
        assert one.since > found.graph.opset
        new = None
    if new is None and draft.refused:
        return draft.refused[-1][0], f"'{draft.refused[-1][1].name}'"
    if new is None:
        return "guard", heard.told()
    if one.since > found.graph.opset:
        return "opset", f"it needs {one.since}, the model's is {found.graph.opset}"
    if one.fast_math and not fast_math:
        return "fast-math", ""
    reason = refusal(one, found, draft, new)
    return ("open", "") if reason is None else (reason, _figures(reason, found, draft, new))


def _place(reason: str, node: Node, found: Match) -> str:
    """Where the matcher stopped."""
    if reason not in ("reader", "output"):
        return f"'{node.name}'"
    out, inside = node.outputs[0], {id(n) for n in found.nodes}
    others = [f"'{reader.name}'" for reader in _once(out.outputs) if id(reader) not in inside]
    return f"'{out.name}', read by {_few(others)}" if reason == "reader" else f"'{out.name}'"


def _figures(reason: str, found: Match, draft: Draft, new: Tensor) -> str:
    if reason == "growth":
        return f"by {growth(found, draft) / 1000:,.1f} kB"
    if reason in ("dtype", "shape"):
        return f"{kind(found.root.outputs[0])} and {kind(new)}"
    return ""


def _once(nodes: list[Any]) -> Iterator[Node]:
    return iter({id(node): node for node in nodes}.values())


def _few(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
