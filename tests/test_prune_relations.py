"""Every operator's relation: which groups a model has, and that removing any of them is exact.

A case is a small model with the sizes of the groups it must have, no more and no less. Each group is pruned by itself
and several at once, at random; the pruned model must be valid, keep its interface, and compute what the masked
original does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from optimizer.compare import compare
from optimizer.errors import BugError
from optimizer.evaluate import Evaluate, Feeds
from optimizer.graph import Graph
from optimizer.instrument import _interface
from optimizer.io import load, to_model
from passes.prune.atoms import Atom, Bools, leaves
from passes.prune.coupling import Coupling, couple, free
from passes.prune.masked import approximate, masked, verify
from passes.prune.shrink import Kept, shrink
from tests.passes import random_feed

EVALUATE = Evaluate(threads=1)
MICROSOFT = "com.microsoft"
SUBSETS = 3  # of several groups at once


@dataclass
class Net:
    """A model in the making: each call adds a node and returns the name of its output, or the names."""

    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    declared: list[onnx.ValueInfoProto] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def input(self, *shape: int | str, dtype: int = TensorProto.FLOAT) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, values: Any, dtype: Any = None) -> str:
        name = f"c{len(self.initializers)}"
        array = np.asarray(values, dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def w(self, *shape: int) -> str:
        """Weights whose products keep their size: divided by the root of what is summed over."""
        over = max(shape[-2:]) if len(shape) == 2 else np.prod(shape[1:]) if len(shape) > 1 else 1
        return self.const(self.rng.standard_normal(shape) / np.sqrt(float(over)), np.float32)

    def positive(self, *shape: int) -> str:
        return self.const(self.rng.uniform(0.5, 1.5, shape), np.float32)

    def __call__(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        return self.several(op, 1, *inputs, domain=domain, **attrs)[0]

    def several(self, op: str, count: int, *inputs: str, domain: str = "", **attrs: Any) -> list[str]:
        outputs = [f"t{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attrs))
        return outputs

    def conv(self, x: str, a: int, b: int, k: int = 1, group: int = 1, **attrs: Any) -> str:
        return self("Conv", x, self.w(b, a // group, k, k), self.w(b), group=group, **attrs)

    def dense(self, x: str, a: int, b: int) -> str:
        return self("Add", self("MatMul", x, self.w(a, b)), self.w(b))

    def declare(self, name: str, *shape: int | str) -> str:
        """What the file says of a result: nothing else tells the shapes that other domains' operators make."""
        self.declared.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "case", self.inputs, infos, self.initializers, value_info=self.declared)
        domains = dict.fromkeys(node.domain for node in self.nodes if node.domain)
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, ir_version=10, opset_imports=imports)
        found = {info.name: info for info in shape_inference.infer_shapes(model, data_prop=True).graph.output}
        found |= {info.name: info for info in self.declared}
        del model.graph.output[:]
        model.graph.output.extend(found[name] for name in outputs)
        return model


# ---------------------------------------------------------------------- what is checked


def groups(coupling: Coupling) -> list[Atom]:
    """The atoms that weights have an axis of and that nothing froze."""
    terms = [t for _, _, w in coupling.weights() for t in coupling.axes[w.name] if t is not None]
    return list(dict.fromkeys(atom for term in terms for atom in free(term)))


def reasons(coupling: Coupling) -> str:
    """Why weights' axes stay."""
    terms = [t for _, _, w in coupling.weights() for t in coupling.axes[w.name] if t is not None]
    return "; ".join(dict.fromkeys(a.frozen for term in terms for a in leaves(term) if a.frozen))


def numbers(coupling: Coupling) -> list[str]:
    """Constants that hold sizes, axes or places: none of them is cut."""
    return [name for name, constant in coupling.graph.constants().items() if constant.dtype == np.int64]


def some(rng: np.random.Generator, atom: Atom) -> Bools:
    """A random mask that keeps one index or more, and not all."""
    mask = rng.random(atom.size) < 0.6
    one, other = rng.choice(atom.size, 2, replace=False)
    mask[one], mask[other] = True, False
    return mask


def prune(graph: Graph, coupling: Coupling, keep: dict[Atom, Bools], feeds: Sequence[Feeds]) -> Graph:
    """The pruned graph, checked: valid, the same interface, exact."""
    old, pruned = Kept(coupling, keep), graph.copy()
    assert shrink(pruned, old) > 0
    model = to_model(pruned)
    onnx.checker.check_model(model)
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert _interface(pruned) == _interface(graph)
    verify(graph, pruned, old, EVALUATE, feeds)
    return pruned


def check(model: onnx.ModelProto, sizes: Sequence[int], *, exact: bool = True, feeds: Sequence[Feeds] = ()) -> Coupling:
    """The groups have these sizes; each of them, and several at once, are removed exactly.

    `exact`: no statistic is taken over what is removed.
    """
    graph = load(model)
    coupling = couple(graph)
    atoms, rng = groups(coupling), np.random.default_rng(1)
    assert sorted(a.size for a in atoms) == sorted(sizes), reasons(coupling)
    assert not [name for name in numbers(coupling) if any(map(free, filter(None, coupling.axes.get(name, ()))))]
    feeds = feeds or [random_feed(graph, shift) for shift in range(2)]
    chosen = [*([atom] for atom in atoms), atoms, *([a for a in atoms if rng.random() < 0.7] for _ in range(SUBSETS))]
    for subset in filter(None, chosen):
        keep = {atom: some(rng, atom) for atom in subset}
        prune(graph, coupling, keep, feeds)
    whole = Kept(coupling, {atom: some(rng, atom) for atom in atoms})
    assert not (exact and approximate(whole)), approximate(whole)
    if atoms and exact:
        assert differs(graph, masked(graph, whole), feeds), "what is removed does nothing: the case shows nothing"
    return coupling


def differs(graph: Graph, other: Graph, feeds: Sequence[Feeds]) -> bool:
    """Whether the outputs are others, beyond rounding."""
    with EVALUATE.open(graph) as first, EVALUATE.open(other) as second:
        found = compare((first(feed), second(feed)) for feed in feeds)
    return not all(d.within_rounding() for d in found.values())


Case = Callable[[Net], str | list[str]]


@dataclass(frozen=True)
class _Case:
    build: Case
    sizes: tuple[int, ...]
    opset: int
    exact: bool


CASES: dict[str, _Case] = {}


def case(*sizes: int, opsets: Sequence[int] = (17,), exact: bool = True) -> Callable[[Case], Case]:
    """A case with groups of these sizes, in each of these operator sets."""

    def add(build: Case) -> Case:
        for opset in opsets:
            name = build.__name__ + (f"-{opset}" if len(opsets) > 1 else "")
            CASES[name] = _Case(build, sizes, opset, exact)
        return build

    return add


# ---------------------------------------------------------------------- convolutions and matrix products


@case(8, opsets=(11, 17, 21))
def plain_conv(net: Net) -> str:
    x = net.conv(net.input("N", 3, 6, 6), 3, 8, 3, pads=[1, 1, 1, 1])
    return net.conv(net("Relu", x), 8, 5, 3)


@case(8)
def strided_and_dilated_conv(net: Net) -> str:
    x = net.conv(net.input("N", 3, 9, 9), 3, 8, 3, strides=[2, 2])
    return net.conv(net("Relu", x), 8, 5, 2, dilations=[2, 2])


@case(8, 4)
def conv_without_bias(net: Net) -> str:
    x = net("Conv", net.input("N", 3, 6, 6), net.w(8, 3, 1, 1))
    x = net("Conv", net("Relu", x), net.w(4, 8, 1, 1))
    return net("Conv", net("Relu", x), net.w(2, 4, 1, 1))


@case(8)
def one_dimensional_conv(net: Net) -> str:
    x = net("Conv", net.input("N", 3, 7), net.w(8, 3, 3), net.w(8))
    return net("Conv", net("Tanh", x), net.w(2, 8, 2))


@case(6)
def depthwise(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 6, 6), 3, 6))
    return net.conv(net("Relu", net.conv(x, 6, 6, 3, group=6)), 6, 2)


@case(6, 2)
def depthwise_with_two_results_a_channel(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 6, 6), 3, 6))
    return net.conv(net("Relu", net.conv(x, 6, 12, 3, group=6)), 12, 2)


@case(3, 4, 5)
def grouped_conv(net: Net) -> str:
    """Whole groups, the same input channel of every group, or the same output channel of every group."""
    x = net("Relu", net.conv(net.input("N", 3, 6, 6), 3, 12))
    return net.conv(net("Relu", net.conv(x, 12, 15, 3, group=3)), 15, 2)


@case(3, 4, 2, 2, 2)
def grouped_convs_of_other_numbers_of_groups(net: Net) -> str:
    """Twelve channels are 3 x 4 for one and 6 x 2 for the other: 3 x 2 x 2."""
    x = net("Relu", net.conv(net.input("N", 3, 6, 6), 3, 12))
    y = net("Relu", net.conv(x, 12, 12, 3, group=3))
    return net.conv(net("Relu", net.conv(y, 12, 12, 3, group=6)), 12, 2)


@case(8, 4)
def transposed_conv(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    x = net("ConvTranspose", x, net.w(8, 4, 2, 2), net.w(4), strides=[2, 2])
    return net.conv(net("Relu", x), 4, 2)


@case(2, 4, 3)
def grouped_transposed_conv(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    x = net("ConvTranspose", x, net.w(8, 3, 2, 2), net.w(6), group=2, strides=[2, 2])
    return net.conv(net("Relu", x), 6, 2)


@case(6)
def depthwise_transposed_conv(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 6))
    x = net("ConvTranspose", x, net.w(6, 1, 2, 2), net.w(6), group=6, strides=[2, 2])
    return net.conv(net("Relu", x), 6, 2)


@case(8, 6)
def gemm(net: Net) -> str:
    x = net("Gemm", net.input("N", 4), net.w(4, 8), net.w(8))
    x = net("Gemm", net("Relu", x), net.w(6, 8), net.w(1, 6), transB=1, alpha=0.5, beta=2.0)
    return net("Gemm", net("Relu", x), net.w(6, 3), net.const(0.5, np.float32))


@case(8, 6)
def gemm_with_transposed_data(net: Net) -> str:
    x = net("Gemm", net.w(4, 8), net.input(4, 5), net.w(8, 1), transA=1)  # [8, 5]
    x = net("Gemm", net("Relu", x), net.w(6, 8), transA=1, transB=1)  # [5, 6]
    return net("Gemm", net("Relu", x), net.w(6, 3), net.w(1))


@case(8)
def gemm_with_a_scalar_bias(net: Net) -> str:
    x = net("Gemm", net.input("N", 4), net.w(4, 8), net.w(1, 1))
    return net("Gemm", net("Relu", x), net.w(8, 3))


@case(8, 6)
def matmul(net: Net) -> str:
    x = net("Gelu" if net.opset >= 20 else "Tanh", net.dense(net.input("N", "T", 4), 4, 8))
    return net.dense(net("Relu", net.dense(x, 8, 6)), 6, 3)


@case(8, 6)
def matmul_with_a_constant_first(net: Net) -> str:
    x = net("MatMul", net.w(8, 4), net.input("N", 4, 5))  # [N, 8, 5]
    x = net("MatMul", net.w(6, 8), net("Relu", x))
    return net("MatMul", net.w(3, 6), net("Relu", x))


@case(8, 6)
def matmul_of_two_activations(net: Net) -> str:
    """What both sum over is one group, what the second one adds another."""
    a, b = net.input("N", 2, 5, 4), net.input(2, 4, 4)
    a = net("Relu", net.dense(a, 4, 8))  # [N, 2, 5, 8]
    b = net("Transpose", net("Relu", net.dense(b, 4, 8)), perm=[0, 2, 1])  # [2, 8, 4], broadcast over N
    both = net("MatMul", a, b)
    wide = net("MatMul", both, net.w(4, 6))
    return net("MatMul", net("Relu", wide), net.w(6, 2))


@case(8)
def matmul_with_a_vector(net: Net) -> str:
    x = net("Relu", net.dense(net.input("N", "T", 4), 4, 8))
    return net("MatMul", x, net.w(8))


@case(8)
def matmul_with_stacked_weights(net: Net) -> str:
    x = net("MatMul", net.input("N", 2, 5, 4), net.const(net.rng.standard_normal((2, 4, 8)), np.float32))
    return net("MatMul", net("Relu", x), net.const(net.rng.standard_normal((2, 8, 3)), np.float32))


@case(8)
def einsum(net: Net) -> str:
    x = net("Relu", net.dense(net.input("N", 5, 4), 4, 8))
    return net("Einsum", x, net.w(3, 8), equation="ntd, ed -> nte")


@case(2, 4, 4)
def einsum_of_heads(net: Net) -> str:
    x = net.input("N", 5, 8)
    q, k = (net("Reshape", net.dense(x, 8, 8), net.ints(0, 0, 2, 4)) for _ in range(2))
    scores = net("Softmax", net("Einsum", q, k, equation="nqhd,nkhd->nhqk"))
    v = net("Reshape", net.dense(x, 8, 8), net.ints(0, 0, 2, 4))
    y = net("Reshape", net("Einsum", scores, v, equation="nhqk,nkhd->nqhd"), net.ints(0, 0, 8))
    return net.dense(y, 8, 3)


# ---------------------------------------------------------------------- element by element


@case(8, opsets=(11, 17))
def elementwise_with_broadcasting(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    x = net("Mul", x, net.w(8, 1, 1))
    x = net("Add", net.w(1, 8, 1, 1), x)
    x = net("Sub", x, net.w(8, 4, 4))
    x = net("Div", x, net.const(2.0, np.float32))
    x = net("Pow", x, net.const([2.0], np.float32))
    x = net("Max", x, net.w(1, 8, 1, 1), net.const(0.25, np.float32))
    x = net("Min", x, net.w(8, 1, 4))
    x = net("Sum", x, net.w(8, 1, 1), x)
    x = net("Mean", x, net.w(4))
    return net.conv(x, 8, 2)


@case(8)
def unary_operators(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    for op in ("Tanh", "Sigmoid", "Neg", "Abs", "Softplus", "Erf", "Identity", "Elu", "HardSigmoid", "HardSwish"):
        x = net(op, x)
    x = net("Clip", net("Cast", x, to=TensorProto.FLOAT), net.const(-2.0, np.float32), net.const(2.0, np.float32))
    return net.conv(net("Dropout", x), 8, 2)


@case(8)
def an_axis_of_size_one_is_free_of_the_others(net: Net) -> str:
    """The gate is one number for all channels."""
    x = net.input("N", 3, 4, 4)
    return net.conv(net("Mul", net.conv(x, 3, 8), net("Sigmoid", net.conv(x, 3, 1))), 8, 2)


@case(8)
def a_table_of_rows_and_a_table_of_columns(net: Net) -> str:
    """[8, 1] + [1, 6], the second one on places."""
    x = net("Add", net.w(8, 1), net.w(1, 6))
    return net("MatMul", net.dense(net.input("N", 4), 4, 8), x)


@case(8)
def where_and_compare(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    chosen = net("Greater", x, net.w(8, 1, 1))
    chosen = net("And", chosen, net.const(np.arange(8).reshape(8, 1, 1) != 3))
    return net.conv(net("Where", chosen, x, net.w(1, 8, 1, 1)), 8, 2)


@case(8)
def prelu(net: Net) -> str:
    x = net("PRelu", net.conv(net.input("N", 3, 4, 4), 3, 8), net.w(8, 1, 1))
    return net.conv(net("PRelu", x, net.w(1)), 8, 2)


@case(8)
def fast_gelu_with_a_bias(net: Net) -> str:
    x = net("MatMul", net.input("N", 5, 4), net.w(4, 8))
    x = net.declare(net("FastGelu", x, net.w(8), domain=MICROSOFT), "N", 5, 8)
    x = net.declare(net("BiasGelu", x, net.w(8), domain=MICROSOFT), "N", 5, 8)
    return net.dense(x, 8, 3)


@case(8, 4)
def residual(net: Net) -> str:
    """What is added is one group; what is inside of a block is its own."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    y = net.conv(net("Relu", net.conv(x, 8, 4, 3, pads=[1, 1, 1, 1])), 4, 8)
    return net.conv(net("Relu", net("Add", x, y)), 8, 2)


@case(8)
def shared_weights(net: Net) -> str:
    """One constant of two nodes, and one that is both a weight and an addend."""
    w, x = net.w(8, 8), net("Relu", net.dense(net.input(8, 4), 4, 8))
    x = net("Relu", net("MatMul", x, w))
    x = net("Relu", net("MatMul", x, w))
    return net.dense(net("Add", x, net.w(8, 8)), 8, 3)


@case(8)
def a_weight_that_is_an_addend_too(net: Net) -> str:
    """The addend is [6, 8], which [6, T, 8] cannot lose a row of: the rows are the model's input."""
    w = net.w(6, 8)
    x = net("Add", net("MatMul", net.input(6, 6), w), w)
    return net.dense(net("Relu", x), 8, 3)


# ---------------------------------------------------------------------- normalisations and reductions


@case(8)
def batch_norm(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    x = net("BatchNormalization", x, net.positive(8), net.w(8), net.w(8), net.positive(8))
    return net.conv(net("Relu", x), 8, 2)


@case(8)
def instance_norm(net: Net) -> str:
    x = net("InstanceNormalization", net.conv(net.input("N", 3, 4, 4), 3, 8), net.positive(8), net.w(8))
    return net.conv(net("Relu", x), 8, 2)


@case(8, exact=False)
def layer_norm(net: Net) -> str:
    x = net("LayerNormalization", net.dense(net.input("N", 5, 4), 4, 8), net.positive(8), net.w(8))
    return net.dense(x, 8, 3)


@case(8, exact=False)
def layer_norm_over_two_axes(net: Net) -> str:
    x = net.dense(net.input("N", 5, 4), 4, 8)
    return net.dense(net("LayerNormalization", x, net.positive(5, 8), axis=1, epsilon=0.1), 8, 3)


@case(8, exact=False, opsets=(13, 18))
def layer_norm_written_out(net: Net) -> str:
    x = net.dense(net.input("N", 5, 4), 4, 8)
    mean = _reduced(net, "ReduceMean", x, [-1])
    centred = net("Sub", x, mean)
    power = _reduced(net, "ReduceMean", net("Pow", centred, net.const(2.0, np.float32)), [-1])
    x = net("Div", centred, net("Sqrt", net("Add", power, net.const(0.01, np.float32))))
    return net.dense(net("Mul", x, net.positive(8)), 8, 3)


def _reduced(net: Net, op: str, x: str, axes: list[int], keepdims: int = 1) -> str:
    if net.opset >= (13 if op == "ReduceSum" else 18):
        return net(op, x, net.ints(*axes), keepdims=keepdims)
    return net(op, x, axes=axes, keepdims=keepdims)


@case(8, exact=False, opsets=(23,))
def rms_norm(net: Net) -> str:
    x = net("RMSNormalization", net.dense(net.input("N", 5, 4), 4, 8), net.positive(8))
    return net.dense(x, 8, 3)


@case(4, opsets=(21,))
def group_norm(net: Net) -> str:
    """Four groups of two."""
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    x = net("GroupNormalization", x, net.positive(8), net.w(8), num_groups=4)
    return net.declare(net.conv(net("Relu", x), 8, 2), "N", 2, 4, 4)


@case(4)
def group_norm_written_out(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    y = net("InstanceNormalization", net("Reshape", x, net.ints(0, 4, -1)), net.positive(4), net.w(4))
    y = net("Reshape", y, net.ints(0, 8, 4, 4))
    return net.conv(net("Add", net("Mul", y, net.w(8, 1, 1)), net.w(8, 1, 1)), 8, 2)


@case(8)
def lp_norm(net: Net) -> str:
    x = net("LpNormalization", net.dense(net.input("N", 5, 4), 4, 8), axis=-1, p=2)
    return net.dense(x, 8, 3)


@case(8, 6, opsets=(11, 13, 18))
def reduce_sum(net: Net) -> str:
    """Over the channels with what is left of them unread, and over places."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    total = _reduced(net, "ReduceSum", x, [1], keepdims=0)
    y = _reduced(net, "ReduceSum", net("Relu", net.conv(x, 8, 6)), [-2, -1], keepdims=0)
    return net("Add", _reduced(net, "ReduceSum", total, [1, 2]), net.dense(y, 6, 2))


@case(8, opsets=(13, 18))
def reduce_norms(net: Net) -> list[str]:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    return [_reduced(net, op, x, [1]) for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare")]


@case(8, exact=False, opsets=(13, 18))
def reduce_mean_over_channels(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return _reduced(net, "ReduceMean", x, [1, 2], keepdims=0)


@case(8, opsets=(13, 18))
def reduce_mean_over_places(net: Net) -> str:
    x = _reduced(net, "ReduceMean", net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8)), [2, 3], keepdims=0)
    return net("Gemm", x, net.w(8, 3))


@case(opsets=(13, 18))
def reduce_max_needs_all(net: Net) -> str:
    return _reduced(net, "ReduceMax", net.conv(net.input("N", 3, 4, 4), 3, 8), [1])


@case(8, opsets=(18,))
def reduce_without_axes(net: Net) -> str:
    x = net("ReduceSum", net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8)), noop_with_empty_axes=1)
    return net("ReduceSum", x)


@case(8, opsets=(11, 17))
def softmax_over_places(net: Net) -> str:
    """Before operator set 13 it takes every axis from the given one on."""
    x = net("Softmax", net.conv(net.input("N", 3, 4, 4), 3, 8), axis=3)
    return net.conv(x, 8, 2)


@case()
def softmax_over_channels(net: Net) -> str:
    return net.conv(net("Softmax", net.conv(net.input("N", 3, 4, 4), 3, 8), axis=1), 8, 2)


@case(opsets=(11,))
def softmax_over_channels_and_all_that_follows(net: Net) -> str:
    return net.conv(net("Softmax", net.conv(net.input("N", 3, 4, 4), 3, 8), axis=1), 8, 2)


@case(8)
def places_that_need_all(net: Net) -> list[str]:
    """TopK, ArgMax, CumSum along the places."""
    x = net("Relu", net.dense(net.input("N", 4, 5), 5, 6))
    x = net("Relu", net("MatMul", net.w(8, 4), x))  # [N, 8, 6]
    values, places = net.several("TopK", 2, x, net.ints(3), axis=-1)
    found = net("ArgMax", x, axis=2)
    total = net("CumSum", x, net.const(2, np.int64))
    y = net("Concat", values, total, net("Cast", places, to=1), net("Cast", found, to=1), axis=2)
    return [net("ReduceSum", y, net.ints(1))]


# ---------------------------------------------------------------------- pooling, padding, resampling


@case(8)
def pooling(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 9, 9), 3, 8))
    x = net("MaxPool", x, kernel_shape=[2, 2])
    x = net("AveragePool", x, kernel_shape=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, strides=[2, 2])
    x = net("LpPool", x, kernel_shape=[2, 2])
    pooled = [net(op, x) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")]
    return net.conv(net("Sum", *pooled), 8, 2)


@case()
def maxima_with_their_places(net: Net) -> list[str]:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    y, places = net.several("MaxPool", 2, x, kernel_shape=[2, 2], strides=[2, 2])
    return [net.conv(y, 8, 2), places]


@case(8, opsets=(11, 17))
def pad_places(net: Net) -> str:
    x = net("Pad", net.conv(net.input("N", 3, 4, 4), 3, 8), net.ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    return net.conv(x, 8, 2, 3)


@case(8, opsets=(11, 17))
def pad_channels(net: Net) -> str:
    x = net(
        "Pad", net.conv(net.input("N", 3, 4, 4), 3, 8), net.ints(0, 1, 0, 0, 0, 3, 0, 0), net.const(0.5, np.float32)
    )
    return net.conv(net("Relu", x), 12, 2)


@case(8, opsets=(18,))
def pad_some_axes(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    x = net("Pad", x, net.ints(1, 1, 1, 1), "", net.ints(2, -1))
    x = net("Pad", x, net.ints(2, 1), "", net.ints(-3))
    return net.conv(x, 11, 2, 3)


@case()
def mirrored_channels(net: Net) -> str:
    x = net("Pad", net.conv(net.input("N", 3, 4, 4), 3, 8), net.ints(0, 1, 0, 0, 0, 3, 0, 0), mode="reflect")
    return net.conv(net("Relu", x), 12, 2)


@case(8, opsets=(11, 17))
def resize_by_scales(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    return net.conv(
        net("Resize", x, net.const([], np.float32), net.const([1, 1, 2, 2], np.float32), mode="linear"), 8, 2
    )


@case(8, opsets=(11, 17))
def resize_to_sizes(net: Net) -> str:
    x = net.conv(net.input(2, 3, 4, 4), 3, 8)
    return net.conv(net("Resize", x, *[net.const([], np.float32)] * 2, net.ints(2, 8, 7, 9), mode="nearest"), 8, 2)


@case(8, opsets=(18,))
def resize_some_axes(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    return net.conv(net("Resize", x, "", "", net.ints(7, 9), mode="linear", axes=[2, 3]), 8, 2)


@case(8, opsets=(16,))
def grid_sample(net: Net) -> str:
    x = net("GridSample", net.conv(net.input("N", 3, 4, 4), 3, 8), net.input("N", 3, 3, 2))
    return net.conv(x, 8, 2)


# ---------------------------------------------------------------------- layout


@case(8, 4)
def concat_of_two(net: Net) -> str:
    x = net.input("N", 3, 4, 4)
    y = net("Concat", net.conv(x, 3, 8), net.conv(x, 3, 4), axis=1)
    return net.conv(net("Relu", y), 12, 2)


@case(8)
def concat_with_itself(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return net.conv(net("Concat", x, net("Neg", x), axis=-3), 16, 2)


@case(8)
def concat_along_places(net: Net) -> str:
    """Both parts have the same channels; one is a constant."""
    x = net.dense(net.input("N", 5, 4), 4, 8)
    x = net("Concat", net("Expand", net.w(1, 1, 8), net.ints(1, 1, 8)), net("ReduceSum", x, net.ints(0)), axis=1)
    return net.dense(x, 8, 3)


@case(5, 3, 6)
def parts_that_overlap(net: Net) -> str:
    """8 + 6 beside 5 + 9: three parts, 5, 3 and 6."""
    x = net.input("N", 3, 4, 4)
    a = net("Concat", net.conv(x, 3, 8), net.conv(x, 3, 6), axis=1)
    b = net("Concat", net.conv(x, 3, 5), net.conv(x, 3, 9), axis=1)
    return net.conv(net("Relu", net("Add", a, b)), 14, 2)


@case(4, 4, opsets=(11, 13))
def split_in_halves(net: Net) -> str:
    a, b = net.several("Split", 2, net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8)), axis=1)
    return net("Add", net.conv(a, 4, 2), net.conv(b, 4, 2))


@case(3, 5, opsets=(11, 13))
def split_unevenly(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    a, b = (
        net.several("Split", 2, x, net.ints(3, 5), axis=-3)
        if net.opset > 11
        else net.several("Split", 2, x, axis=1, split=[3, 5])
    )
    return net("Add", net.conv(a, 3, 2), net.conv(b, 5, 2))


@case(3, 3, 2, opsets=(18,))
def split_by_number(net: Net) -> str:
    """8 in 3 parts: the last one is smaller."""
    parts = net.several("Split", 3, net.conv(net.input("N", 3, 4, 4), 3, 8), axis=1, num_outputs=3)
    return net("Sum", *(net.conv(p, n, 2) for p, n in zip(parts, (3, 3, 2), strict=True)))


@case(4, opsets=(13,))
def gated(net: Net) -> str:
    """Half of the channels gate the other half."""
    a, b = net.several("Split", 2, net.conv(net.input("N", 3, 4, 4), 3, 8), axis=1)
    return net.conv(net("Mul", a, net("Sigmoid", b)), 4, 2)


@case(3, 2, 3, opsets=(9, 11, 17))
def slices(net: Net) -> str:
    """[0, 3), and [-3, end) given as far beyond the end."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    a, b = _slice(net, x, 0, 3, 1), _slice(net, x, -3, 2**31 - 1, -3)
    y = net("Add", net.conv(a, 3, 2), net.conv(b, 3, 2))
    return net("Add", y, net.conv(x, 8, 2))


def _slice(net: Net, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
    if net.opset < 10:
        return net("Slice", x, starts=[start], ends=[end], axes=[axis if axis >= 0 else axis + 4])
    return net("Slice", x, *(net.ints(v) for v in (start, end, axis, step)))


@case(4)
def every_second_channel(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    a, b = (_slice(net, x, start, 2**63 - 1, 1, 2) for start in (0, 1))
    return net.conv(net("Sub", a, b), 4, 2)


@case()
def channels_backwards(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return net.conv(_slice(net, x, -1, -9, 1, -1), 8, 2)


@case(8)
def slices_of_places(net: Net) -> str:
    """Focus: every second place of every second row, put together as channels."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    parts = []
    for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)):
        ends = net.ints(2**31 - 1, 2**31 - 1)
        parts.append(net("Slice", x, net.ints(i, j), ends, net.ints(2, 3), net.ints(2, 2)))
    return net.conv(net("Concat", *parts, axis=1), 32, 2)


@case(8)
def embedding(net: Net) -> str:
    """Rows are data, columns are channels."""
    x = net("Gather", net.w(7, 8), net.input("N", "T", dtype=TensorProto.INT64))
    return net.dense(net("Add", x, net.w(1, 1, 8)), 8, 3)


@case(8)
def first_row(net: Net) -> str:
    x = net("Relu", net.dense(net.input("N", 5, 4), 4, 8))
    return net("Gemm", net("Gather", x, net.const(0, np.int64), axis=1), net.w(8, 3))


@case(8)
def flatten_before_dense(net: Net) -> str:
    """Every channel is 16 rows of the weights."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return net("Gemm", net("Flatten", x), net.w(128, 3))


@case(8, 6)
def flatten_by_reshape(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    x = net("Gemm", net("Reshape", x, net.ints(-1, 128)), net.w(128, 6))
    return net("Gemm", net("Relu", x), net.w(6, 3))


@case(8)
def flatten_by_reshape_of_the_rest(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return net("Gemm", net("Reshape", x, net.ints(0, -1)), net.w(128, 3))


@case(8)
def flatten_channels_last(net: Net) -> str:
    """Places are outer, channels inner."""
    x = net("Transpose", net("Relu", net.conv(net.input("N", 3, 2, 3), 3, 8)), perm=[0, 2, 3, 1])
    return net("Gemm", net("Reshape", x, net.ints(0, -1)), net.w(48, 3))


@case(8, 3)
def flatten_at_another_axis(net: Net) -> str:
    x = net("Relu", net.conv(net.input(2, 3, 2, 3), 3, 8))  # [2, 8, 2, 3]
    x = net("Flatten", x, axis=2)  # [16, 6]
    x = net("Relu", net("Gemm", x, net.w(6, 3)))
    x = net("Reshape", x, net.ints(2, 24), allowzero=1)
    return net("Gemm", x, net.w(24, 2))


@case(2, 2)
def reshape_in_factors(net: Net) -> str:
    """2 x 6 beside 4 x 3 of what 12 is: nothing in common but 2 x 2 x 3; 3 is held by a softmax."""
    x = net("Relu", net.dense(net.input("N", 4), 4, 12))
    a = net("Reshape", net("Reshape", x, net.ints(0, 4, 3)), net.ints(0, 12))
    b = net("Reshape", net("Relu", net("Reshape", x, net.ints(0, 2, 6))), net.ints(0, 12))
    c = net("Reshape", net("Softmax", net("Reshape", x, net.ints(0, 4, 3))), net.ints(0, 12))
    return net.dense(net("Sum", a, b, c), 12, 3)


@case()
def reshape_across_structure(net: Net) -> str:
    """3 x 4 beside 4 x 3: no common factors."""
    x = net("Relu", net.dense(net.input("N", 4), 4, 12))
    a = net("Reshape", net("Relu", net("Reshape", x, net.ints(0, 3, 4))), net.ints(0, 12))
    b = net("Reshape", net("Relu", net("Reshape", x, net.ints(0, 4, 3))), net.ints(0, 12))
    return net.dense(net("Add", a, b), 12, 3)


@case(8, opsets=(11, 13))
def squeeze_and_unsqueeze(net: Net) -> str:
    x = net("GlobalAveragePool", net.conv(net.input("N", 3, 4, 4), 3, 8))
    if net.opset < 13:
        x = net("Unsqueeze", net("Squeeze", x, axes=[2, 3]), axes=[-1, 2])
    else:
        x = net("Unsqueeze", net("Squeeze", x, net.ints(-1, 2)), net.ints(-1, 2))
    return net.conv(x, 8, 2)


@case(2)
def squeeze_of_all_ones(net: Net) -> str:
    """The two channels may become one, which is not to be squeezed."""
    x = net("GlobalAveragePool", net.conv(net.input(3, 3, 4, 4), 3, 2))
    return net("Gemm", net("Squeeze", x), net.w(2, 3))


@case(8)
def transposes(net: Net) -> str:
    x = net("Transpose", net("Relu", net.conv(net.input(2, 3, 4, 5), 3, 8)))  # [5, 4, 8, 2]
    x = net("Transpose", x, perm=[3, 0, 1, 2])
    return net("MatMul", x, net.w(8, 3))


@case(8, 2)
def expand_and_tile(net: Net) -> str:
    """[8, 1] becomes [8, 6]; [1, 8] is repeated to be [1, 16]."""
    x = net("Expand", net.dense(net.input(1, 4), 4, 8), net.ints(5, 1))
    y = net("Tile", net("Relu", x), net.ints(1, 2))
    z = net("Relu", net("Gemm", net.input(5, 4), net.w(4, 2)))
    return net("Add", net.dense(y, 16, 3), net.dense(z, 2, 3))


@case(2, opsets=(11, 13))
def depth_to_space(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    return net.conv(net("DepthToSpace", x, blocksize=2), 2, 3)


@case(2, opsets=(11, 13))
def depth_to_space_channels_outermost(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    return net.conv(net("DepthToSpace", x, blocksize=2, mode="CRD"), 2, 3)


@case(2)
def pixel_shuffle_written_out(net: Net) -> str:
    x = net("Reshape", net.conv(net.input("N", 3, 4, 4), 3, 8), net.ints(0, 2, 2, 2, 4, 4))
    x = net("Reshape", net("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), net.ints(0, 2, 8, 8))
    return net.conv(x, 2, 3)


@case(3)
def space_to_depth(net: Net) -> str:
    x = net("SpaceToDepth", net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 3)), blocksize=2)
    return net.conv(x, 12, 2)


@case(2, 3, opsets=(11, 17))
def channel_shuffle(net: Net) -> str:
    """Six channels as 2 x 3 become 3 x 2: they stay pairs of an outer and an inner index."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 6))
    x = net("Transpose", net("Reshape", x, net.ints(-1, 2, 3, 4, 4)), perm=[0, 2, 1, 3, 4])
    return net.conv(net("Reshape", x, net.ints(-1, 6, 4, 4)), 6, 2)


@case(8, 8, opsets=(11, 13))
def patches(net: Net) -> str:
    """A vision transformer's head: convolution, flattened places, class token, positions."""
    x = net("Reshape", net.conv(net.input("N", 3, 4, 4), 3, 8, 2, strides=[2, 2]), net.ints(0, 8, -1))
    x = net("Transpose", x, perm=[0, 2, 1])
    x = net("Concat", net("Gather", x, net.ints(0), axis=1), x, axis=1)
    x = net("Add", x, net.w(1, 5, 8))
    y = net.dense(net("Relu", net.dense(x, 8, 8)), 8, 8)
    return net("Gemm", net("Gather", net("Add", x, y), net.const(0, np.int64), axis=1), net.w(8, 3))


@case(8)
def shape_of_the_batch(net: Net) -> str:
    """Its channels may go: only the batch's size is read."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    batch = net("Cast", net("Gather", net("Shape", x), net.const(0, np.int64)), to=TensorProto.FLOAT)
    return net.conv(net("Div", x, batch), 8, 2)


@case()
def shape_of_the_channels(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    count = net("Cast", net("Gather", net("Shape", x), net.const(1, np.int64)), to=TensorProto.FLOAT)
    return net.conv(net("Div", x, count), 8, 2)


@case(8)
def shape_from_the_third_on(net: Net) -> str:
    """Slices and the attribute `start` say what is read."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    a = net("ReduceProd", net("Shape", x, start=2))
    b = net("ReduceProd", net("Slice", net("Shape", x), net.ints(-2), net.ints(4)))
    count = net("Cast", net("Add", a, b), to=TensorProto.FLOAT)
    return net.conv(net("Div", x, count), 8, 2)


@case()
def size_of_all(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return net.conv(net("Div", x, net("Cast", net("Size", x), to=TensorProto.FLOAT)), 8, 2)


@case()
def computed_target(net: Net) -> str:
    """The size of the channels is a part of a target that is computed."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    rest = net("ReduceProd", net("Slice", net("Shape", x), net.ints(1), net.ints(4)))
    target = net("Concat", net.ints(-1), rest, axis=0)
    return net("Gemm", net("Reshape", x, target), net.w(128, 3))


# ---------------------------------------------------------------------- attention


def _heads(net: Net, x: str, heads: int, dim: int, perm: Sequence[int] = (0, 2, 1, 3)) -> str:
    """[N, T, heads * dim] to [N, heads, T, dim], or as `perm` says."""
    return net("Transpose", net("Reshape", x, net.ints(0, 0, heads, dim)), perm=perm)


def _attend(net: Net, q: str, k: str, v: str, width: int) -> str:
    """Heads' results put together again; `k` is [N, heads, dim, T]."""
    scores = net("Div", net("MatMul", q, k), net.const(2.0, np.float32))
    y = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return net("Reshape", y, net.ints(0, 0, width))


@case(3, 4, 4, opsets=(11, 17))
def attention(net: Net) -> str:
    """Heads, dimensions of queries and keys, dimensions of values."""
    x = net.input("N", "T", 6)
    q, k, v = (net.dense(x, 6, 12) for _ in range(3))
    y = _attend(net, _heads(net, q, 3, 4), _heads(net, k, 3, 4, (0, 2, 3, 1)), _heads(net, v, 3, 4), 12)
    return net.dense(y, 12, 5)


@case(3, 4, 4)
def attention_with_keys_transposed_afterwards(net: Net) -> str:
    x = net.input("N", "T", 6)
    q, k, v = (_heads(net, net.dense(x, 6, 12), 3, 4) for _ in range(3))
    return net.dense(_attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), v, 12), 12, 5)


@case(12, 3, 4, 4)
def attention_in_a_residual_network(net: Net) -> str:
    """The width of the residual stream is a group of its own."""
    x = net("Relu", net.dense(net.input("N", "T", 6), 6, 12))
    q, k, v = (net.dense(x, 12, 12) for _ in range(3))
    y = _attend(net, _heads(net, q, 3, 4), _heads(net, k, 3, 4, (0, 2, 3, 1)), _heads(net, v, 3, 4), 12)
    return net.dense(net("Add", x, net.dense(y, 12, 12)), 12, 5)


@case(3, 4, 4, opsets=(11, 17))
def fused_attention_by_split(net: Net) -> str:
    parts = net.several("Split", 3, net.dense(net.input("N", "T", 6), 6, 36), axis=-1)
    q, k, v = (
        _heads(net, p, 3, 4, perm) for p, perm in zip(parts, ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)), strict=True)
    )
    return net.dense(_attend(net, q, k, v, 12), 12, 5)


@case(3, 4)
def fused_attention_by_gather(net: Net) -> str:
    """All three are rows of one table: dimensions of queries, keys and values are the same one."""
    x = net("Reshape", net.dense(net.input("N", "T", 6), 6, 36), net.ints(0, 0, 3, 3, 4))
    x = net("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k, v = (net("Gather", x, net.const(i, np.int64), axis=0) for i in range(3))
    return net.dense(_attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), v, 12), 12, 5)


@case(3, 4, opsets=(13,))
def fused_attention_by_unbinding(net: Net) -> str:
    x = net("Reshape", net.dense(net.input("N", "T", 6), 6, 36), net.ints(0, 0, 3, 3, 4))
    parts = net.several("Split", 3, net("Transpose", x, perm=[2, 0, 3, 1, 4]), axis=0)
    q, k, v = (net("Squeeze", part, net.ints(0)) for part in parts)
    return net.dense(_attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), v, 12), 12, 5)


@case(3, 4, 4)
def attention_with_batch_and_heads_in_one_axis(net: Net) -> str:
    """As fairseq and torch's own module write it: [N * heads, T, dim] with a batch of 2."""
    x = net.input("T", 2, 6)
    parts = []
    for _ in range(3):
        y = net("Reshape", net.dense(x, 6, 12), net.ints(-1, 6, 4))
        parts.append(net("Transpose", y, perm=[1, 0, 2]))
    q, k, v = parts
    scores = net("Softmax", net("MatMul", q, net("Transpose", k, perm=[0, 2, 1])), axis=-1)
    y = net("Transpose", net("MatMul", scores, v), perm=[1, 0, 2])
    return net.dense(net("Reshape", y, net.ints(-1, 2, 12)), 12, 5)


@case(2, 2, 4)
def rope_of_halves(net: Net) -> str:
    """Rotates the first half of the dimensions with the second: pairs (i, i + 2) go together."""
    x = net.input("N", 5, 6)
    q, k = (_rotate_half(net, _heads(net, net.dense(x, 6, 8), 2, 4)) for _ in range(2))
    y = _attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), _heads(net, net.dense(x, 6, 8), 2, 4), 8)
    return net.dense(y, 8, 3)


def _rotate_half(net: Net, x: str) -> str:
    first, second = _slice(net, x, 0, 2, 3), _slice(net, x, 2, 2**63 - 1, 3)
    turned = net("Concat", net("Neg", second), first, axis=-1)
    return net("Add", net("Mul", x, net.w(1, 1, 5, 4)), net("Mul", turned, net.w(1, 1, 5, 4)))


@case(2, 2, 4)
def rope_interleaved(net: Net) -> str:
    """Rotates every second dimension with the one before: pairs (2i, 2i + 1) go together."""
    x = net.input("N", 5, 6)
    q, k = (_rotate_pairs(net, _heads(net, net.dense(x, 6, 8), 2, 4)) for _ in range(2))
    y = _attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), _heads(net, net.dense(x, 6, 8), 2, 4), 8)
    return net.dense(y, 8, 3)


def _rotate_pairs(net: Net, x: str) -> str:
    even, odd = (_slice(net, x, start, 2**63 - 1, 3, 2) for start in (0, 1))
    parts = [net("Unsqueeze", part, net.ints(-1)) for part in (net("Neg", odd), even)]
    turned = net("Reshape", net("Concat", *parts, axis=-1), net.ints(0, 0, 0, 4))
    return net("Add", net("Mul", x, net.w(5, 4)), net("Mul", turned, net.w(5, 4)))


@case(2, 3, 4, 4)
def grouped_query_attention(net: Net) -> str:
    """Two heads of keys and values, three query heads for each: either number may shrink."""
    x = net.input("N", 5, 6)
    q = _heads(net, net.dense(x, 6, 24), 6, 4)
    k, v = (_repeated(net, _heads(net, net.dense(x, 6, 8), 2, 4)) for _ in range(2))
    return net.dense(_attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), v, 24), 24, 3)


def _repeated(net: Net, x: str) -> str:
    """[N, 2, 5, 4] to [N, 6, 5, 4], each head three times in a row."""
    x = net("Expand", net("Unsqueeze", x, net.ints(2)), net.ints(1, 2, 3, 5, 4))
    return net("Reshape", x, net.ints(-1, 6, 5, 4))


@case(2, 4, 4)
def grouped_query_attention_by_tiles(net: Net) -> str:
    """The three copies of a Tile stay."""
    x = net.input("N", 5, 6)
    q = net("Transpose", net("Reshape", net.dense(x, 6, 24), net.ints(0, 0, 6, 4)), perm=[0, 2, 1, 3])
    k, v = (_tiled(net, _heads(net, net.dense(x, 6, 8), 2, 4)) for _ in range(2))
    return net.dense(_attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), v, 24), 24, 3)


def _tiled(net: Net, x: str) -> str:
    x = net("Tile", net("Unsqueeze", x, net.ints(2)), net.ints(1, 1, 3, 1, 1))
    return net("Reshape", x, net.ints(-1, 6, 5, 4))


@case(2, 4, 4)
def multi_query_attention(net: Net) -> str:
    """One head of keys and values, broadcast over all query heads: that head is whole."""
    x = net.input("N", 5, 6)
    q = _heads(net, net.dense(x, 6, 8), 2, 4)
    k, v = (net("Unsqueeze", net.dense(x, 6, 4), net.ints(1)) for _ in range(2))
    return net.dense(_attend(net, q, net("Transpose", k, perm=[0, 1, 3, 2]), v, 8), 8, 3)


@case(3, 4, 2, opsets=(23,))
def attention_operator(net: Net) -> str:
    x = net.input("N", 5, 6)
    q, k, v = net.dense(x, 6, 12), net.dense(x, 6, 12), net.dense(x, 6, 6)
    return net.dense(net("Attention", q, k, v, q_num_heads=3, kv_num_heads=3), 6, 5)


@case(2, 4, 4, opsets=(23,))
def attention_operator_with_fewer_keys(net: Net) -> str:
    """A head of keys and values goes with the three query heads that read it."""
    x = net.input("N", 5, 6)
    q, k, v = net.dense(x, 6, 24), net.dense(x, 6, 8), net.dense(x, 6, 8)
    return net.dense(net("Attention", q, k, v, q_num_heads=6, kv_num_heads=2, scale=0.3, is_causal=1), 24, 5)


@case(2, 4, 3, opsets=(23,))
def attention_operator_of_four_axes(net: Net) -> str:
    x = net.input("N", 5, 6)
    q = _heads(net, net.dense(x, 6, 16), 4, 4)
    k, v = _heads(net, net.dense(x, 6, 8), 2, 4), _heads(net, net.dense(x, 6, 6), 2, 3)
    y = net("Transpose", net("Attention", q, k, v), perm=[0, 2, 1, 3])
    return net.dense(net("Reshape", y, net.ints(0, 0, 12)), 12, 5)


@case(3, 4, 4, opsets=(23,))
def attention_operator_with_a_mask(net: Net) -> str:
    """One mask for all heads, as a number to add."""
    x = net.input("N", 5, 6)
    q, k, v = (net.dense(x, 6, 12) for _ in range(3))
    return net.dense(net("Attention", q, k, v, net.w(5, 5), q_num_heads=3, kv_num_heads=3), 12, 5)


@case(3, 4, 2)
def microsoft_attention_operator(net: Net) -> str:
    x = net.input("N", 5, 6)
    q, k, v = net.dense(x, 6, 12), net.dense(x, 6, 12), net.dense(x, 6, 6)
    y = net.declare(net("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=3), "N", 5, 6)
    return net.dense(y, 6, 5)


# ---------------------------------------------------------------------- known blocks


@case(8, 2)
def squeeze_and_excitation(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    gate = net("Relu", net.conv(net("GlobalAveragePool", x), 8, 2))
    return net.conv(net("Mul", x, net("HardSigmoid", net.conv(gate, 2, 8))), 8, 3)


@case(4, 3, 3, 5, 5, 5)
def dense_block(net: Net) -> str:
    """Every layer reads all that came before; its bottleneck is its own."""
    x = net.conv(net.input("N", 3, 4, 4), 3, 4)
    for width in (4, 7):
        y = net("BatchNormalization", x, net.positive(width), net.w(width), net.w(width), net.positive(width))
        y = net("Relu", net.conv(net("Relu", y), width, 5))
        x = net("Concat", x, net.conv(y, 5, 3, 3, pads=[1, 1, 1, 1]), axis=1)
    x = net("BatchNormalization", x, net.positive(10), net.w(10), net.w(10), net.positive(10))
    return net.conv(net("Relu", net.conv(net("Relu", x), 10, 5)), 5, 2)


def _shuffled(net: Net, x: str, channels: int) -> str:
    x = net("Reshape", x, net.ints(-1, 2, channels // 2, 4, 4))
    return net("Reshape", net("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(-1, channels, 4, 4))


@case(2, 2, 4, 4, 4)
def shuffle_blocks(net: Net) -> str:
    """ShuffleNetV2: half passes, half is transformed, their channels are interleaved; and so on."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    for _ in range(2):
        a, b = net.several("Split", 2, x, axis=1)
        b = net("Relu", net.conv(net.conv(net("Relu", net.conv(b, 4, 4)), 4, 4, 3, group=4, pads=[1, 1, 1, 1]), 4, 4))
        x = _shuffled(net, net("Concat", a, b, axis=1), 8)
    return net.conv(x, 8, 3)


@case(12, 3, 4, 4, 24, exact=False)
def swin_block(net: Net) -> str:
    """Rolled, cut into windows of 2 x 2, attended within, put back; the batch is dynamic."""
    x = net("Transpose", net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 12)), perm=[0, 2, 3, 1])
    y = net("LayerNormalization", x, net.positive(12), net.w(12))
    for axis in (1, 2):
        y = net("Concat", _slice(net, y, 1, 2**31 - 1, axis), _slice(net, y, 0, 1, axis), axis=axis)
    y = net("Transpose", net("Reshape", y, net.ints(-1, 2, 2, 2, 2, 12)), perm=[0, 1, 3, 2, 4, 5])
    y = net("Reshape", y, net.ints(-1, 4, 12))
    q, k, v = (net.dense(y, 12, 12) for _ in range(3))
    y = _attend(net, _heads(net, q, 3, 4), _heads(net, k, 3, 4, (0, 2, 3, 1)), _heads(net, v, 3, 4), 12)
    y = net("Reshape", net.dense(y, 12, 12), net.ints(-1, 2, 2, 2, 2, 12))
    y = net("Reshape", net("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), net.ints(-1, 4, 4, 12))
    for axis in (1, 2):
        y = net("Concat", _slice(net, y, -1, 2**31 - 1, axis), _slice(net, y, 0, -1, axis), axis=axis)
    x = net("Add", x, y)
    x = net("Add", x, net.dense(net("Erf", net.dense(x, 12, 24)), 24, 12))
    return net.dense(net("ReduceMean", x, axes=[1, 2], keepdims=0), 12, 5)


@case(4, 3)
def patch_merging(net: Net) -> str:
    """Four neighbours' channels are put side by side, as Swin does between its stages."""
    x = net("Transpose", net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 4)), perm=[0, 2, 3, 1])
    x = net("Reshape", x, net.ints(-1, 2, 2, 2, 2, 4))
    x = net("Reshape", net("Transpose", x, perm=[0, 1, 3, 4, 2, 5]), net.ints(-1, 4, 16))
    return net.dense(net("Relu", net.dense(x, 16, 3)), 3, 2)


@case(12, 7)
def mixer(net: Net) -> str:
    """Dense layers over places and over channels."""
    x = net.dense(net.input("N", 5, 6), 6, 12)
    y = net("Relu", net.dense(net("Transpose", x, perm=[0, 2, 1]), 5, 7))
    return net.dense(net("Add", x, net("Transpose", net.dense(y, 7, 5), perm=[0, 2, 1])), 12, 3)


# ---------------------------------------------------------------------- recurrent networks


def _recurrent(
    net: Net, op: str, x: str, size: int, hidden: int, directions: int = 1, *more: str, **attrs: Any
) -> list[str]:
    """Y as [T, N, directions * hidden], and the last states."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    w, r = net.w(directions, gates * hidden, size), net.w(directions, gates * hidden, hidden)
    count = 3 if op == "LSTM" else 2
    direction = "bidirectional" if directions == 2 else "forward"
    made = net.several(op, count, x, w, r, *more, hidden_size=hidden, direction=direction, **attrs)
    y = net("Transpose", made[0], perm=[0, 2, 1, 3])
    return [net("Reshape", y, net.ints(0, 0, directions * hidden)), *made[1:]]


@case(8, 5, 6)
def lstm(net: Net) -> str:
    """What it reads, its own units, those of a second one."""
    x = net("Relu", net.dense(net.input("T", "N", 4), 4, 8))
    x, *_ = _recurrent(net, "LSTM", x, 8, 5, 1, net.w(1, 40))
    x, *_ = _recurrent(net, "LSTM", x, 5, 6)
    return net.dense(x, 6, 3)


@case(8, 5)
def lstm_in_both_directions(net: Net) -> str:
    """Constant states to start with, and peepholes: both directions lose the same units."""
    x = net("Relu", net.dense(net.input(3, 2, 4), 4, 8))
    more = [net.w(2, 40), "", net.w(2, 2, 5), net.w(2, 2, 5), net.w(2, 15)]
    x, h, c = _recurrent(net, "LSTM", x, 8, 5, 2, *more)
    last = net("ReduceSum", net("Add", h, c), net.ints(0), keepdims=0)  # [2, 5]
    return net("Add", net.dense(x, 10, 3), net("MatMul", last, net.w(5, 3)))


@case(8, 5, opsets=(11, 17))
def gru_in_both_directions(net: Net) -> str:
    x = net("Relu", net.dense(net.input("T", "N", 4), 4, 8))
    x, _ = _recurrent(net, "GRU", x, 8, 5, 2, net.w(2, 30))
    return net.dense(x, 10, 3)


@case(8, 5)
def gru_with_a_reset_after_the_product(net: Net) -> str:
    x = net("Relu", net.dense(net.input("T", "N", 4), 4, 8))
    x, _ = _recurrent(net, "GRU", x, 8, 5, 1, net.w(1, 30), linear_before_reset=1)
    return net.dense(x, 5, 3)


@case(8, 5)
def simple_rnn(net: Net) -> str:
    x = net("Relu", net.dense(net.input("T", "N", 4), 4, 8))
    x, _ = _recurrent(net, "RNN", x, 8, 5, 1, net.w(1, 10))
    return net.dense(x, 5, 3)


@case(8)
def lstm_with_states_from_outside(net: Net) -> str:
    """Its units are the model's input; what it reads is free."""
    x = net("Relu", net.dense(net.input("T", "N", 4), 4, 8))
    x, *_ = _recurrent(net, "LSTM", x, 8, 5, 1, "", "", net.input(1, "N", 5), net.input(1, "N", 5))
    return net.dense(x, 5, 3)


# ---------------------------------------------------------------------- quantised models


@case(8, opsets=(13, 21))
def quantised_with_a_scale_per_channel(net: Net) -> str:
    """Weights of Conv are no constants here, but the last layer's are."""
    codes = net.const(net.rng.integers(-100, 100, (8, 3, 1, 1)), np.int8)
    scale = net.const(net.rng.uniform(0.01, 0.02, 8), np.float32)
    w = net("DequantizeLinear", codes, scale, net.const(np.zeros(8), np.int8), axis=0)
    x = net("Relu", net("Conv", net.input("N", 3, 4, 4), w))
    step, zero = net.const(0.05, np.float32), net.const(128, np.uint8)
    x = net("DequantizeLinear", net("QuantizeLinear", x, step, zero), step, zero)
    steps, zeros = net.const(net.rng.uniform(0.05, 0.1, 8), np.float32), net.const(np.full(8, 100), np.uint8)
    x = net("DequantizeLinear", net("QuantizeLinear", x, steps, zeros, axis=-3), steps, zeros)
    return net.conv(x, 8, 2)


# ---------------------------------------------------------------------- what stays


@case()
def the_interface_stays(net: Net) -> str:
    return net.conv(net.input("N", 3, 4, 4), 3, 8)


@case()
def outputs_in_between_stay(net: Net) -> list[str]:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return [net.conv(x, 8, 2), x]


@case()
def a_residual_of_the_input_stays(net: Net) -> str:
    x = net.input("N", 8, 4, 4)
    return net.conv(net("Relu", net("Add", x, net.conv(x, 8, 8))), 8, 2)


@case()
def unknown_operators_freeze(net: Net) -> str:
    x = net("Relu", net.conv(net.input(1, 3, 4, 4), 3, 8))
    return net.conv(net("LRN", x, size=3), 8, 2)


@case()
def picked_channels_stay(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    return net.conv(net("Gather", x, net.ints(3, 1, 4, 1), axis=1), 4, 2)


@case(2, 4, 2)
def picked_in_runs(net: Net) -> str:
    """Indices in runs are parts of the axis, in another order and some of them twice."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    y = net("Gather", x, net.ints(-2, -1, 0, 1, -2, -1), axis=1)
    return net("Add", net.conv(y, 6, 2), net.conv(x, 8, 2))


@case(2, 2, 4, opsets=(23,))
def rotary_operator(net: Net) -> str:
    """The first half of the dimensions is rotated with the second; tables lose the same columns."""
    tables = [net.w(5, 2), net.w(5, 2), net.const([[0, 1, 2, 3, 4]] * 2, np.int64)]
    x = net.dense(net.input(2, 5, 6), 6, 8)
    q = net("RotaryEmbedding", _heads(net, x, 2, 4), *tables)
    k = net("RotaryEmbedding", net.dense(x, 8, 8), *tables, num_heads=2, interleaved=0)
    y = _attend(net, q, _heads(net, k, 2, 4, (0, 2, 3, 1)), _heads(net, net.dense(x, 8, 8), 2, 4), 8)
    return net.dense(y, 8, 3)


@case(12, 12, exact=False)
def two_layer_norms_in_a_row(net: Net) -> str:
    x = net.dense(net.input("N", 5, 4), 4, 12)
    x = net("LayerNormalization", x, net.positive(12), epsilon=0.1)
    x = net("LayerNormalization", net.dense(x, 12, 12), net.positive(12), net.w(12), epsilon=0.1)
    return net.dense(x, 12, 2)


@case(4, 3)
def a_sum_over_two_groups_at_once(net: Net) -> str:
    x = net("Reshape", net("Sigmoid", net.dense(net.input("N", 5, 4), 4, 12)), net.ints(0, 5, 4, 3))
    return net("ReduceSum", x, net.ints(2, 3))


@case(3, 3, 6)
def shuffled_and_cut_inside_of_a_row(net: Net) -> str:
    """(2, 7) turned into (7, 2) and cut in the middle: three rows of two, one of each row, three rows of two."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 14))
    x = net("Transpose", net("Reshape", x, net.ints(-1, 2, 7, 4, 4)), perm=[0, 2, 1, 3, 4])
    x = net("Reshape", x, net.ints(-1, 14, 4, 4))
    a, b = net.several("Split", 2, x, axis=1)
    return net("Sub", net.conv(a, 7, 2), net.conv(net("Relu", net.conv(b, 7, 6)), 6, 2))


@case(8)
def computed_targets(net: Net) -> str:
    """Parts of them are known numbers of channels: those are overridden."""
    x = net("Relu", net.conv(net.input("N", 3, "H", "W"), 3, 8))
    y = net("ReduceSum", x, net.ints(2, 3))  # [N, 8, 1, 1]
    sizes = net("Shape", x)
    batch, places = net("Slice", sizes, net.ints(0), net.ints(1)), net("Slice", sizes, net.ints(2), net.ints(4))
    y = net("Expand", y, net("Concat", batch, net.ints(8), places, axis=0))
    rows = net("Concat", batch, net.ints(8), net("ReduceProd", places), axis=0)
    y = net("Reshape", net("Add", net("Reshape", x, rows), net("Reshape", y, rows)), sizes)
    doubled = net("Mul", places, net.ints(2))
    sizes = net("Concat", batch, net.ints(8), doubled, axis=0)
    return net.conv(net("Resize", y, "", "", sizes, mode="nearest"), 8, 2)


@case(8)
def shape_of_another_tensor(net: Net) -> str:
    """A shape that makes another tensor's: its axes are the same, and follow by themselves."""
    x = net("Relu", net.dense(net.input("N", 5, 4), 4, 8))
    mask = net("Expand", net.input("N", 5, 1), net("Shape", x))
    ones = net("ConstantOfShape", net("Shape", mask), value=helper.make_tensor("", 1, [1], [0.5]))
    return net("Sum", *(net.dense(y, 8, 3) for y in (x, mask, ones)))


@case(opsets=(11,))
def softmax_before_operator_set_13(net: Net) -> str:
    """It takes all axes from the given one on: channels are the last of them."""
    return net.dense(net("Softmax", net.dense(net.input("N", 5, 4), 4, 8), axis=1), 8, 2)


@case()
def channels_that_are_resampled(net: Net) -> str:
    """1.1 times 8 channels are 8 channels, but others."""
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    scales = net.const([1, 1.1, 2, 2], np.float32)
    return net.conv(net("Resize", x, net.const([], np.float32), scales, mode="linear"), 8, 2)


@case()
def channels_that_are_cropped(net: Net) -> str:
    x = net.conv(net.input("N", 3, 4, 4), 3, 8)
    places = net.const([0, 0.1, 0, 0, 1, 0.9, 1, 1], np.float32)
    sizes = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    return net.conv(net("Resize", x, places, net.const([1, 1, 2, 2], np.float32), **sizes), 8, 2)


@case()
def a_layer_norm_that_gives_its_mean(net: Net) -> list[str]:
    x = net.dense(net.input("N", 5, 4), 4, 8)
    y, mean = net.several("LayerNormalization", 2, x, net.positive(8))
    return [net.dense(y, 8, 2), mean]


@case(4)
def captured_tensors_stay(net: Net) -> str:
    """What the branches of an If read stays; what follows does not."""
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 8, 4, 4])
    bodies = [helper.make_graph([helper.make_node(op, [x], ["z"])], op, [], [made]) for op in ("Neg", "Abs")]
    y = net("If", net.input(dtype=TensorProto.BOOL), then_branch=bodies[0], else_branch=bodies[1])
    return net.conv(net("Relu", net.conv(y, 8, 4)), 4, 2)


@case(8)
def weights_that_callers_may_override(net: Net) -> str:
    w = net.w(6, 8, 1, 1)
    x = net("Conv", net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8)), net.w(6, 8, 1, 1))
    y = net("Conv", net("Relu", net.conv(x, 6, 8)), w)
    net.inputs.append(helper.make_tensor_value_info(w, TensorProto.FLOAT, [6, 8, 1, 1]))
    return net("Add", x, y)


@case()
def other_domains_stay(net: Net) -> str:
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    y = net.declare(net("Blur", x, domain="somebody.else"), "N", 8, 4, 4)
    return net.conv(y, 8, 2)


@pytest.mark.parametrize("name", CASES)
def test_groups_are_exact(name: str) -> None:
    one = CASES[name]
    net = Net(one.opset)
    made = one.build(net)
    check(net.model(*([made] if isinstance(made, str) else made)), one.sizes, exact=one.exact)


def test_weights_tell_a_length_that_shapes_do_not() -> None:
    """Batch and length are those of another input; heads are found from what the next layer sums over."""
    net = Net()
    x = net("Reshape", net.dense(net.input("N", "T", 6), 6, 8), net.ints(0, 0, 2, 4))
    sizes = net("Slice", net("Shape", net.input("M", "S")), net.ints(0), net.ints(2))
    x = net("Reshape", x, net("Concat", sizes, net.ints(-1), axis=0))
    model = net.model(net.dense(net("Relu", net.dense(net("Relu", x), 8, 4)), 4, 2))
    rng = np.random.default_rng(0)
    feed = {"x0": rng.standard_normal((2, 5, 6), np.float32), "x1": np.zeros((2, 5), np.float32)}
    check(model, [2, 4, 4], feeds=[feed])


@pytest.mark.parametrize("name", ["Conv_1", "t2_0"])
def test_skip_names_nodes_or_tensors(name: str) -> None:
    """Of three convolutions in a row the middle one's results stay, and so does what it reads."""
    net = Net()
    x = net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8))
    x = net("Relu", net.conv(net("Relu", net.conv(x, 8, 6)), 6, 5))
    graph = load(net.model(net.conv(x, 5, 2)))
    assert [a.size for a in groups(couple(graph))] == [8, 6, 5]
    assert [a.size for a in groups(couple(graph, [name]))] == [5]


def test_a_pruned_graph_that_is_not_the_masked_one_is_a_bug() -> None:
    """The oracle sees one wrong number."""
    net = Net()
    graph = load(net.model(net.conv(net("Relu", net.conv(net.input("N", 3, 4, 4), 3, 8)), 8, 2)))
    coupling, rng = couple(graph), np.random.default_rng(0)
    keep = {atom: some(rng, atom) for atom in groups(coupling)}
    feeds = [random_feed(graph)]
    pruned = prune(graph, coupling, keep, feeds)
    for node in pruned.nodes[-1:]:
        values = pruned.array(node.inputs[1])
        assert values is not None
        wrong = values.copy()
        wrong.flat[0] += 0.01
        pruned.set_input(node, 1, pruned.constant(wrong, "wrong"))
    with pytest.raises(BugError, match="is not that of the masked one"):
        verify(graph, pruned, Kept(coupling, keep), EVALUATE, feeds)


# ---------------------------------------------------------------------- time and depth


def coupled(model: onnx.ModelProto) -> tuple[Coupling, float]:
    """The coupling, and the seconds of processor time that it took."""
    graph = load(model)
    start = time.process_time()
    coupling = couple(graph)
    return coupling, time.process_time() - start


def test_wide_layers_take_no_time() -> None:
    """A hundred layers of 1,024 channels: no object a channel."""
    net = Net()
    x = net.conv(net.input("N", 3, 2, 2), 3, 1024)
    w = net.const(np.zeros((1024, 1024, 1, 1), np.float32))
    for _ in range(100):
        x = net("Relu", net("Conv", net("Reshape", x, net.ints(0, 1024, 2, 2)), w))
    coupling, seconds = coupled(net.model(net.conv(x, 1024, 2)))
    assert [a.size for a in groups(coupling)] == [1024]
    assert seconds < 2


def test_deep_chains_take_linear_time() -> None:
    """Two thousand layers, each a group of its own, and no recursion."""
    net = Net()
    x = net.conv(net.input("N", 3, 2, 2), 3, 4)
    for _ in range(2000):
        x = net("Relu", net.conv(x, 4, 4))
    coupling, seconds = coupled(net.model(net.conv(x, 4, 2)))
    atoms = groups(coupling)
    assert len(atoms) == 2001
    assert seconds < 5
    graph = coupling.graph.copy()
    assert shrink(graph, Kept(coupling, {a: np.arange(4) < 3 for a in atoms})) == 2 * 2001 + 1


def test_nested_concats_take_no_exponential_time() -> None:
    """What a dense block concatenates is one chain of parts, however deep; two of them are unified part by part."""
    net = Net()
    image = net.input("N", 3, 2, 2)
    x = y = net.conv(image, 3, 2)
    for width in range(4, 600, 2):
        part = net.conv(image, 3, 2)
        x, y = net("Concat", x, part, axis=1), net("Concat", y, net("Neg", part), axis=1)
        if width % 50 == 0:
            x = net("Add", x, y)
    coupling, seconds = coupled(net.model(net.conv(x, 598, 2)))
    assert len(groups(coupling)) == 299
    assert seconds < 5
