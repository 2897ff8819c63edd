"""GroupNormalization (from 21; Wu & He 2018) from the parts that older operator sets spell it with.

    [N, C, ...] as [N, G, M]    n = InstanceNormalization of that, scale 1, bias 0    n as [N, C, ...]    n w + b

An instance is one of the G groups then, and its mean and variance are taken over M = C/G channels and all that
follows, as GroupNormalization takes them; w and b have one value for each channel. The first Reshape must group whole
channels, [0, G, -1] or the same in numbers, and the second must give back the shape of x. (E17 of the usual
catalogues.)

Applied only where it is named: ONNX Runtime's CPU has no kernel for it and runs the operator's function body, which is
slower than the parts.
"""

from __future__ import annotations

import math

import numpy as np

from optimizer.graph import Tensor
from optimizer.match import Match
from optimizer.rewrite import Draft, rule
from passes.fuse.arrays import has_dtype, narrow, per_channel

DTYPES = ("float16", "float32")


@rule("Add(Mul(Reshape(InstanceNormalization(r=Reshape(x, s), one, zero), t), w), b)", since=21)
def group_norm(m: Match, make: Draft) -> Tensor | None:
    x, one, zero = m["x"], make.array(m["one"]), make.array(m["zero"])
    if one is None or zero is None or one.ndim != 1 or not one.size or not (one == 1).all() or zero.any():
        return None
    if not has_dtype(x, *DTYPES) or not _groups(m, make, len(one)) or not _restores(m, make):
        return None
    constants = []
    for name, hint in (("w", "scale"), ("b", "bias")):
        given = make.array(m[name])
        values = None if given is None else per_channel(given, len(x.shape), 1, x.shape[1])
        made = None if values is None else narrow(values, x.dtype)
        if made is None:
            return None
        constants.append(make.constant(made, hint))
    epsilon = float(make.attr(m.node("InstanceNormalization"), "epsilon"))
    return make.node("GroupNormalization", x, *constants, attrs={"num_groups": len(one), "epsilon": epsilon})


def _groups(m: Match, make: Draft, groups: int) -> bool:
    """True where the inner Reshape makes [N, G, M] of x, each of G groups being whole channels of one instance."""
    shape, target = m["x"].shape, make.array(m["s"])
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int) or target is None or len(target) != 3:
        return False
    if shape[1] % groups or target[1] != groups or make.attr(m["r"].inputs[0], "allowzero"):
        return False
    if target[0] == 0:
        return bool(target[2] == -1)
    inner = math.prod(shape[1:]) if all(isinstance(d, int) for d in shape[1:]) else 0
    return inner > 0 and target[2] == inner // groups  # then -1 can only be N


def _restores(m: Match, make: Draft) -> bool:
    """True where the outer Reshape gives x's shape: by asking for it, or in numbers, one of which may be left out."""
    x, outer = m["x"], m.node("Reshape")
    source = next(iter(m["t"].inputs), None)
    if source is not None and source.op == "Shape" and not source.domain and source.inputs[0] is x:
        return not make.attr(source, "start") and make.attr(source, "end") is None
    target = make.array(m["t"])
    if target is None or len(target) != len(x.shape) or np.count_nonzero(target == -1) > 1:
        return False
    if make.attr(outer, "allowzero") or (target[1:] == 0).any():
        return False
    pairs = zip(target[1:].tolist(), x.shape[1:], strict=True)
    return target[0] in (0, -1, x.shape[0]) and all(t in (-1, d) for t, d in pairs)
