"""The minimal cut of a small network (Dinic 1970), without loading networkx, which takes longer than most graphs do."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from itertools import pairwise

Left = dict[Hashable, dict[Hashable, int]]


def smallest_side(edges: Mapping[Hashable, Mapping[Hashable, int]], source: Hashable, sink: Hashable) -> set[Hashable]:
    """The nodes on the sink's side of a minimal cut, as few as there can be; `edges` holds capacities."""
    left: Left = {source: {}, sink: {}}
    for start, targets in edges.items():
        for end, capacity in targets.items():
            left.setdefault(start, {})
            left[start][end] = left[start].get(end, 0) + capacity
            left.setdefault(end, {}).setdefault(start, 0)
    while sink in (level := _levels(left, source)):
        _block(left, level, source, sink)
    side, pending = {sink}, [sink]
    while pending:
        end = pending.pop()
        reaching = [start for start in left[end] if start not in side and left[start][end]]
        side.update(reaching)
        pending.extend(reaching)
    return side


def _levels(left: Left, source: Hashable) -> dict[Hashable, int]:
    """How many edges with capacity left lead from the source to each node that they reach."""
    level, pending = {source: 0}, deque([source])
    while pending:
        start = pending.popleft()
        for end, capacity in left[start].items():
            if capacity and end not in level:
                level[end] = level[start] + 1
                pending.append(end)
    return level


def _block(left: Left, level: Mapping[Hashable, int], source: Hashable, sink: Hashable) -> None:
    """Sends all that goes down the levels from the source to the sink."""
    ends = {start: list(targets) for start, targets in left.items()}  # the last is tried next
    path = [source]
    while path:
        start = path[-1]
        if start == sink:
            steps = list(pairwise(path))
            flow = min(left[a][b] for a, b in steps)
            for a, b in steps:
                left[a][b] -= flow
                left[b][a] += flow
            path = [source]
        elif not ends[start]:
            path.pop()
        elif left[start][end := ends[start][-1]] and level.get(end) == level[start] + 1 and ends[end]:
            path.append(end)
        else:
            ends[start].pop()
