"""What `optimize explain` tells: which rules made each node of the result, of what, and which rules nearly applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import onnx

from optimizer import targets
from optimizer.context import Context
from optimizer.data import Given, open_data
from optimizer.errors import UserError
from optimizer.evaluate import Evaluate
from optimizer.graph import Graph, Node
from optimizer.io import load
from optimizer.journal import Journal
from optimizer.manager import PassManager
from optimizer.nearmiss import Miss, near_misses
from optimizer.pipeline import text
from optimizer.plan import make_plan
from optimizer.statistics import Statistics

FORMAT = 1
HINTS = 3  # names that a message suggests


def explain(
    model: onnx.ModelProto | Path | str,
    *,
    target: str = "onnx",
    passes: str | None = None,
    scheme: str | None = None,
    data: Given | None = None,
    preprocess: str | None = None,
    node: str | None = None,
) -> dict[str, Any]:
    """Runs a target's float pipeline, one of its schemes, or `passes`, and says what it did (docs/explain.md).

    `data` is for pipelines that calibrate. `node` asks for one node, of the result or of the original, by its name or
    that of a tensor it makes. Raises UserError where there is none, and what the passes raise.
    """
    goal = targets.target(target)
    sequence = make_plan(goal, passes, scheme).sequence(scheme)
    graph = load(model)
    original = graph.copy()
    evaluate = Evaluate()
    feeds = open_data(data, graph, evaluate, preprocess=preprocess).calibration if data is not None else ()
    journal = Journal()
    journal.start(graph)
    PassManager([journal]).run(sequence, graph, Context(goal, evaluate, feeds, statistics=Statistics()))
    misses = near_misses(graph, journal.applied)
    told = _Told(original, graph, journal)
    about = {
        "format": FORMAT,
        "model": model.graph.name if isinstance(model, onnx.ModelProto) else str(model),
        "target": goal.name,
        "pipeline": text(sequence),
    }
    if node is not None:
        return about | _one(told, misses, node)
    return about | {
        "nodes_before": len(told.came),
        "nodes_after": len(told.left),
        "rules": told.counts(),
        "nodes": [told.node(one) for one in told.left.values()],
        "gone": told.gone(),
        "rewrites": [told.edit(number) for number in range(len(journal.edits))],
        "near_misses": [_miss(miss) for miss in misses if not miss.trivial],
    }


class _Told:
    """A journal beside the graphs before and after it, as JSON values."""

    def __init__(self, original: Graph, graph: Graph, journal: Journal):
        self.came = {node.name: node for node in original.walk()}
        self.left = {node.name: node for node in graph.walk()}
        self.journal = journal
        self.chains: dict[str, tuple[int, ...]] = {}  # by node that there ever was: the edits that led to it
        self.last: dict[str, int] = {}  # by node of the original: the latest edit of what stands for it
        origin: dict[str, tuple[str, ...]] = {name: (name,) for name in self.came}
        for number, edit in enumerate(journal.edits):
            chain = dict.fromkeys(n for name in edit.took for n in self.chains.get(name, ()))
            whence = dict.fromkeys(one for name in edit.took for one in origin.get(name, ()))
            self.last.update(dict.fromkeys(whence, number))
            for name in edit.made or edit.took:
                self.chains[name] = (*chain, number)
            origin.update(dict.fromkeys(edit.made, tuple(whence)))
        self.origin = origin

    def counts(self) -> list[dict[str, Any]]:
        """How often each rule fired, and what passes did by themselves, the commonest first."""
        found = Counter((edit.step.partition("{")[0], edit.rule) for edit in self.journal.edits)
        return [{"pass": step, "rule": rule or None, "count": n} for (step, rule), n in found.most_common()]

    def node(self, node: Node) -> dict[str, Any]:
        kept = node.name in self.came and self.origin.get(node.name) == (node.name,)
        return {
            **_facts(node),
            "kept": kept,
            "from": [_facts(self.came[name]) for name in self.origin.get(node.name, ()) if name in self.came],
            "rewrites": list(self.chains.get(node.name, ())),
        }

    def gone(self) -> list[dict[str, Any]]:
        """Nodes of the original that no node of the result stands for."""
        stood = {name for left in self.left for name in self.origin.get(left, ())}
        return [self.end(name) for name in self.came if name not in stood]

    def end(self, name: str) -> dict[str, Any]:
        """How a node of the original went, and the tensor that its readers read now."""
        number = self.last.get(name)
        into = "" if number is None else self.journal.edits[number].into
        return {**_facts(self.came[name]), "rewrite": number, "into": into or None}

    def edit(self, number: int) -> dict[str, Any]:
        edit = self.journal.edits[number]
        return {
            "number": number,
            "pass": edit.step,
            "rule": edit.rule or None,
            "took": self._named(edit.took),
            "made": self._named(edit.made),
            "into": edit.into or None,
            "instead_of": edit.instead_of or None,
        }

    def _named(self, names: Iterable[str]) -> list[dict[str, str]]:
        return [{"node": name, "op": self.journal.ops.get(name, "")} for name in names]

    def story(self, name: str) -> list[int]:
        """All edits that a node has to do with: those that led to it, and those that took it or what came of it."""
        own = {name}
        found = set(self.chains.get(name, ()) if name in self.left else ())
        for number, edit in enumerate(self.journal.edits):
            if own.intersection(edit.took):
                found.add(number)
                own.update(edit.made)
        return sorted(found)


def _one(told: _Told, misses: Sequence[Miss], name: str) -> dict[str, Any]:
    """Everything about one node: what it is now, or what became of it, and every rule that fits there."""
    name = _known(told, name)
    left = told.left.get(name)
    became = [told.node(node) for key, node in told.left.items() if name in told.origin.get(key, ())]
    return {
        "node": None if left is None else told.node(left),
        "became": [row for row in became if row["node"] != name] if name in told.came else [],
        "gone": told.end(name) if name in told.came and left is None and not became else None,
        "rewrites": [told.edit(number) for number in told.story(name)],
        "near_misses": [_miss(miss) for miss in misses if name in (node.name for node in miss.nodes)],
    }


def _known(told: _Told, name: str) -> str:
    """The node that is called so, or that makes the tensor that is. Raises UserError with the nearest names."""
    makers = {t.name: n.name for nodes in (told.came, told.left) for n in nodes.values() for t in n.outputs if t.name}
    if name in told.left or name in told.came:
        return name
    if name in makers:
        return makers[name]
    near = get_close_matches(name, [*told.left, *told.came, *makers], HINTS)
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "'optimize explain MODEL --json' lists all"
    raise UserError(f"--node {name}: neither the model nor the result has a node or a tensor of that name; {hint}")


def _facts(node: Node) -> dict[str, Any]:
    return {"node": node.name, "op": node.op, "outputs": [t.name for t in node.outputs if t.name]}


def _miss(miss: Miss) -> dict[str, Any]:
    nodes = [{"node": node.name, "op": node.op} for node in miss.nodes]
    return {"pass": miss.step, "rule": miss.rule, "nodes": nodes, "reason": miss.reason, "text": miss.text}
