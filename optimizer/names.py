"""The names of a model's tensors and nodes: none is ever used twice, so a tensor can be found by its name."""

from __future__ import annotations


class Names:
    """The tensor and node names in use, shared by a graph and all its subgraphs. A name is never used twice.

    `outputs` holds the names of all scopes' outputs.
    """

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.outputs: set[str] = set()
        self._next: dict[str, int] = {}
        self._stems: dict[str, str] = {}

    def fresh(self, hint: str) -> str:
        """An unused name starting with `hint`; constant time, whatever the number of names."""
        if hint and hint not in self.used:
            self.used.add(hint)
            return hint
        stem = self._stems.get(hint, hint) or "tensor"  # so that a name made from a made one is no longer than it
        n = self._next.get(stem, 0) + 1
        while (name := f"{stem}_{n}") in self.used:
            n += 1
        self._next[stem], self._stems[name] = n, stem
        self.used.add(name)
        return name
