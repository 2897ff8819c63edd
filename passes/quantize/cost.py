"""Where int8 pays: every region is cut down to the stretch whose dot products save most over what its borders cost.

Costs are nanoseconds per element, measured with one thread on AVX512-VNNI; only their ratios matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx

from optimizer.graph import Graph, Tensor
from optimizer.statistics import Histogram
from passes.quantize.kernels import Kind, dots
from passes.quantize.units import Unit, connected

SAVED_PER_DOT = 0.015
BORDER = 0.6
POINTWISE = 0.3
LONGEST_CUT = 40  # units tried for removal at either end of a region
OVERHEAD = 2000.0  # per extra operator, whatever its size


def paying(graph: Graph, units: list[Unit], statistics: Mapping[str, Histogram]) -> list[Unit]:
    """Cuts every region (units joined by int8 tensors) down to the stretch that gains most; none where none gains."""
    made = {t.name: u for u in units for t in u.results}
    links: nx.Graph[Unit] = nx.Graph()
    links.add_nodes_from(units)
    links.add_edges_from((made[t.name], u) for u in units for t in u.inputs if t.name in made)
    kept: set[int] = set()
    for members in nx.connected_components(links):
        region = [u for u in units if u in members]
        region = _best(graph, [region[n:] for n in range(min(len(region), LONGEST_CUT))], statistics)
        region = _best(graph, [region[: len(region) - n] for n in range(min(len(region), LONGEST_CUT))], statistics)
        kept.update(id(u) for u in region)
    return [u for u in units if id(u) in kept]


def _best(graph: Graph, choices: list[list[Unit]], statistics: Mapping[str, Histogram]) -> list[Unit]:
    best: tuple[float, list[Unit]] = (0.0, [])
    for choice in map(connected, choices):
        if choice and (gain := _gain(graph, choice, statistics)) > best[0]:
            best = gain, choice
    return best[1]


def _gain(graph: Graph, region: list[Unit], statistics: Mapping[str, Histogram]) -> float:
    def elements(tensor: Tensor) -> float:
        h = statistics[tensor.name]
        return h.size / max(1, h.batches)

    made = {t.name for u in region for t in u.results}
    nodes = {id(n) for u in region for n in u.nodes}
    borders = {t.name: t for u in region for t in u.inputs if t.name not in made}
    for unit in region:
        leaves = [t for t in unit.results if graph.is_output(t) or any(id(r) not in nodes for r in t.outputs)]
        borders.update((t.name, t) for t in leaves)
    gain = -BORDER * sum(elements(t) for t in borders.values())
    for unit in region:
        size = elements(unit.node.outputs[0])
        if unit.kind is Kind.WEIGHTED:
            gain += SAVED_PER_DOT * size * dots(graph, unit.node)
        elif unit.kind is not Kind.MOVE:
            extra = 2 if unit.node.op == "HardSwish" else 1
            gain -= extra * (size * POINTWISE + OVERHEAD)
    return gain
