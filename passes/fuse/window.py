"""Where a convolution's kernel meets its input: output place o, tap t reads element  stride o - begin + dilation t."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.graph import Node
from optimizer.rewrite import Draft


def own_pads(node: Node, make: Draft, spatial: int) -> list[int] | None:
    """The operator's own pads; None where it computes them from the size of its input."""
    auto = make.attr(node, "auto_pad")
    if auto == "VALID":
        return [0] * (2 * spatial)
    return list(make.attr(node, "pads") or [0] * (2 * spatial)) if auto == "NOTSET" else None


@dataclass(frozen=True)
class Window:
    """Kernel size, strides and dilations, and the pads before and behind, along the spatial axes."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, conv: Node, make: Draft) -> Window | None:
        """Of a Conv or ConvTranspose; None where the size of its weight is unknown or its pads depend on the input."""
        shape = conv.inputs[1].shape
        if shape is None or not all(isinstance(d, int) for d in shape):
            return None
        n = len(shape) - 2
        pads = own_pads(conv, make, n)
        if pads is None:
            return None
        strides, dilations = (tuple(make.attr(conv, name) or (1,) * n) for name in ("strides", "dilations"))
        return cls(tuple(shape[2:]), strides, dilations, tuple(pads[:n]), tuple(pads[n:]))

    @classmethod
    def one(cls, n: int) -> Window:
        """The window of an operator that leaves every element in its place."""
        return cls((1,) * n, (1,) * n, (1,) * n, (0,) * n, (0,) * n)

    @property
    def pads(self) -> tuple[int, ...]:
        return self.begins + self.ends

    @property
    def single(self) -> bool:
        """True for a kernel of one element, in steps of 1, without pads."""
        return all(v == 1 for v in self.size + self.strides) and not any(self.pads)

    def offsets(self, larger: Window) -> list[int] | None:
        """First tap of the larger window, along each axis, at which this one's meet the same elements of any input.

        None where they do not, or where the two make different numbers of places.
        """
        if self.strides != larger.strides:
            return None
        found = []
        for i, (j, k, e, d) in enumerate(zip(self.size, larger.size, self.dilations, larger.dilations, strict=True)):
            shift = larger.begins[i] - self.begins[i]
            if shift % d or not 0 <= shift // d <= k - j or (j > 1 and e != d):
                return None
            if shift + larger.ends[i] - d * (k - 1) != self.ends[i] - e * (j - 1):
                return None
            found.append(shift // d)
        return found
