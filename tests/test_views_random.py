"""Rules that rearrange views of a tensor, on random models: outputs stay, and some of the models do change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.passes import run

Rng = np.random.Generator


def _dims(values: object) -> str:
    return ",".join(map(str, np.atleast_1d(np.asarray(values)).tolist()))


def pieces(rng: Rng) -> str:
    """Slices or Gathers that take an axis to pieces, or nearly; then some of them in a Concat."""
    n, axis = int(rng.integers(3, 8)), int(rng.integers(0, 2)) + 1
    cuts = sorted(rng.choice(np.arange(1, n), int(rng.integers(1, 3)), replace=False).tolist())
    ends, constants, nodes = [0, *cuts, n], [f"int64[1] axis = {{{axis}}}"], []
    for i in range(len(ends) - 1):
        start, end = ends[i] - n * int(rng.random() < 0.3), ends[i + 1] + int(rng.random() < 0.1)
        if rng.random() < 0.2:
            indices = range(ends[i], ends[i + 1])
            constants.append(f"int64[{len(indices)}] i{i} = {{{_dims(list(indices))}}}")
            nodes.append(f"p{i} = Gather <axis = {axis}> (x, i{i})")
        else:
            end = 2**63 - 1 if end >= n else end
            constants.append(f"int64[1] s{i} = {{{start}}}, int64[1] e{i} = {{{end}}}")
            nodes.append(f"p{i} = Slice (x, s{i}, e{i}, axis)")
    order = rng.permutation(len(nodes)) if rng.random() < 0.5 else np.arange(len(nodes))
    nodes = [nodes[i] for i in rng.permutation(len(nodes))]
    joined = f"y = Concat <axis = {axis}> ({_dims([f'p{i}' for i in order])}) r = Neg (p0)"
    shape = f"N,{n},3" if axis == 1 else f"N,3,{n}"
    body = f"{' '.join(nodes)} {joined}"
    return f"g (float[{shape}] x) => (float[A,B,C] y, float[D,E,F] r) <{', '.join(constants)}> {{ {body} }}"


def regrouped(rng: Rng) -> str:
    """Reshape, Transpose, Reshape: of blocks of channels or pixels by a permutation that some operator has, or none."""
    b, c = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    h, w = rng.integers(1, 4, 2).tolist()
    perms = ["0,3,4,1,5,2", "0,1,4,2,5,3", "0,3,5,1,2,4", "0,1,3,5,2,4", "0,4,3,1,5,2", "0,3,4,1,2,5"]
    kind = int(rng.integers(3))
    small, large = [c * b * b, h, w], [c, h * b, w * b]
    blocks = ([b, b, c, h, w], [c, b, b, h, w], [c, h, b, w, b])[kind]
    source, result = (large, small) if kind == 2 else (small, large)
    if rng.random() < 0.1:
        result = [result[0], result[2], result[1]]
    heads = rng.choice([0, -1], 2)
    text = f"int64[6] s = {{{heads[0]},{_dims(blocks)}}}, int64[4] t = {{{heads[1]},{_dims(result)}}}"
    perm = perms[kind] if rng.random() < 0.7 else rng.choice(perms)
    body = f"a = Reshape (x, s) c = Transpose <perm = [{perm}]> (a) y = Reshape (c, t)"
    return f"g (float[N,{_dims(source)}] x) => (float[A,B,C,D] y) <{text}> {{ {body} }}"


def summed(rng: Rng) -> str:
    """Einsum of one or two operands with random letters, some of them transposed before."""
    sizes = {"a": "N", "b": "2", "c": "3", "d": "M", "e": "4"}
    terms = ["".join(rng.permutation(list("abcde"))[: rng.integers(1, 4)]) for _ in range(rng.integers(1, 3))]
    letters = sorted(set("".join(terms)))
    kept = "".join(rng.permutation(letters)[: rng.integers(1, len(letters) + 1)])
    inputs, nodes, names = [], [], []
    for i, term in enumerate(terms):
        turned = rng.random() < 0.5
        inputs.append(f"float[{','.join(sizes[t] for t in (term[::-1] if turned else term))}] x{i}")
        nodes += [f"t{i} = Transpose (x{i})"] if turned else []
        names.append(f"t{i}" if turned else f"x{i}")
    result = ",".join(f"R{i}" for i in range(len(kept)))
    body = f'{" ".join(nodes)} y = Einsum <equation = "{",".join(terms)}->{kept}"> ({", ".join(names)})'
    return f"g ({', '.join(inputs)}) => (float[{result}] y) {{ {body} }}"


def repeated(rng: Rng) -> str:
    """An elementwise operator on a repeated or filled operand and one of random dims, most of them the same."""
    full = ["N", "2", "M", "256"][int(rng.integers(0, 3)) :]
    own = [d if rng.random() < 0.5 else "1" for d in full][int(rng.integers(0, 2)) :]
    other = [d if rng.random() < 0.8 else "1" for d in full][int(rng.integers(0, 3) == 0) :]
    op, turned = rng.choice(["Add", "Sub", "Max", "Pow", "Mul"]), rng.random() < 0.5
    inputs = f"float[{','.join(full)}] like, float[{','.join(own)}] x, float[{','.join(other)}] z"
    made = ["Expand (x, s)", "ConstantOfShape <value = float[1] {1.5}> (s)"][int(rng.random() < 0.3)]
    operands = "w, e" if turned else "e, w"
    result = ",".join(f"R{i}" for i in range(len(full)))
    body = f"s = Shape (like) e = {made} w = Abs (z) y = {op} ({operands})"
    return f"g ({inputs}) => (float[{result}] y) {{ {body} }}"


@pytest.mark.parametrize(
    ("draw", "pipeline"),
    [(pieces, "cleanup"), (regrouped, "fuse"), (summed, "fuse"), (repeated, "cleanup")],
)
def test_views_change_only_where_outputs_stay(draw: Callable[[Rng], str], pipeline: str) -> None:
    counts = [run(pipeline, draw(np.random.default_rng(seed))) for seed in range(60)]
    assert sum(count > 0 for count in counts) > 10
