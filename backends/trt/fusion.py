"""Q/DQ that TensorRT takes but cannot make fast: rules of severity `slow`.

A weighted operator runs in int8 where both its inputs come out of a DequantizeLinear; what follows it element by
element, up to a residual Add, is computed in the same kernel as long as no Q/DQ stands in between. Anything else runs
in int8 only where all its inputs and its output are quantised. Sources: NVIDIA's recommendations on placing Q/DQ
("Explicit Quantization" in the TensorRT documentation).
"""

from __future__ import annotations

from collections.abc import Iterator

from optimizer import qdq
from optimizer.graph import Graph, Node, Tensor
from optimizer.lint import Place, rule
from optimizer.qdq import copies, dequantizer, is_dequantize, is_quantize, maker, readers, weighted

POINTWISE = qdq.UNARY | qdq.BINARY | {"BatchNormalization"}
EPILOGUE = frozenset(["BatchNormalization", "Clip", "HardSwish", "LeakyRelu", "PRelu", "Relu"])
ALONE = frozenset(["Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul", "Resize"])
WEIGHT_ONLY = ("int4", "float4_e2m1fn", "float8_e4m3fn")
DEPTH = 16  # operators looked at on the way to a Q, or back to a convolution

Found = Iterator[tuple[Place, str]]


@rule(
    "trt-half-quantized",
    "slow",
    "weighted operator with one quantised input",
    "quantise its other input too, or take the Q/DQ off this one",
)
def _half(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        a, b = (dequantizer(graph, t, ("Cast",)) for t in node.inputs[:2])
        made = a or b
        if made is None or (a and b) or qdq.code_type(graph, made) in WEIGHT_ONLY:
            continue
        quantized, other = (0, 1) if a else (1, 0)
        yield node, f"'{node.inputs[quantized].name}' is quantised, '{node.inputs[other].name}' is not: runs in float"


@rule(
    "trt-weight-axis",
    "slow",
    "weights with scales along the wrong axis",
    "one scale per output channel: axis 0 for Conv and for Gemm with transB, 1 for ConvTranspose and Gemm, the last "
    "for MatMul",
)
def _axis(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        made = dequantizer(graph, node.inputs[1], ("Cast",), copied=False)
        axis = None if made is None else qdq.channels(graph, made)
        if axis is None or not qdq.rooted(node.inputs[1]) or axis == qdq.channel_axis(graph, node):
            continue
        right = qdq.channel_axis(graph, node)
        wanted = "one scale" if right is None else f"axis {right}"
        yield node, f"'{node.inputs[1].name}' has scales along axis {axis}, {node.op} can use {wanted}: runs in float"


@rule(
    "trt-bias",
    "slow",
    "quantised bias",
    "leave the bias in float: it is added to the int32 sums",
)
def _bias(graph: Graph) -> Found:
    for node in filter(weighted, graph.walk()):
        made = maker(node.inputs[2]) if len(node.inputs) > 2 else None
        if made is not None and is_dequantize(made) and qdq.code_type(graph, made) != "int32":
            yield node, f"its bias '{node.inputs[2].name}' comes out of a DequantizeLinear"


@rule(
    "trt-cast",
    "slow",
    "Cast inside Q/DQ",
    "move it before QuantizeLinear or behind the operator, with the scale in the type that is computed in",
)
def _cast(graph: Graph) -> Found:
    for node in graph.walk():
        if node.op != "Cast" or node.domain:
            continue
        made, used = maker(node.inputs[0]), readers(node.outputs[0])
        if made is not None and is_dequantize(made) and any(weighted(n) for n in used):
            yield node, f"stands between DequantizeLinear and '{_name(next(n for n in used if weighted(n)))}'"
        elif made is not None and is_quantize(made):
            yield node, f"reads the codes of '{_name(made)}'"


@rule(
    "trt-epilogue",
    "slow",
    "Q/DQ between a weighted operator and what fuses with it",
    "move the QuantizeLinear behind the bias, normalisation or activation",
)
def _epilogue(graph: Graph) -> Found:
    for node in graph.walk():
        if not is_quantize(node) or (head := _head(graph, node.inputs[0])) is None:
            continue
        for view in _views(node):
            after = next((n for n in readers(view) if _fuses(graph, n, view, node)), None)
            if after is not None:
                yield node, f"separates '{_name(head)}' ({head.op}) from '{_name(after)}' ({after.op})"
                break


@rule(
    "trt-residual",
    "slow",
    "residual Add whose convolution branch is quantised",
    "quantise the skip only; the branch stays float, so that convolution, Add and activation are one kernel",
)
def _residual(graph: Graph) -> Found:
    for node in _sums(graph):
        made = [maker(t) for t in node.inputs]
        branches = [m for m in made if m is not None and is_dequantize(m) and _branch(graph, m) is not None]
        floats = [t for t in node.inputs if (m := maker(t)) is None or not is_dequantize(m)]
        if branches and not any(_behind(graph, t) for t in floats):
            yield node, f"'{branches[0].outputs[0].name}' is the branch: it comes from a convolution through Q/DQ"


@rule(
    "trt-two-scales",
    "slow",
    "tensor quantised twice, with different scales",
    "give the tensor one QuantizeLinear that all its readers share",
)
def _two_scales(graph: Graph) -> Found:
    first: dict[int, Node] = {}
    for node in graph.walk():
        if is_quantize(node) and not qdq.rooted(node.inputs[0]):
            other = first.setdefault(id(node.inputs[0]), node)
            if not qdq.same_parameters(graph, node, other):
                yield node, f"'{node.inputs[0].name}' is quantised by '{_name(other)}' too, with another scale"


@rule(
    "trt-float-output",
    "slow",
    "quantised inputs, but no quantised output",
    "quantise the output too, or take the Q/DQ off the inputs: only weighted operators read int8 and write float",
)
def _float_output(graph: Graph) -> Found:
    for node in _alone(graph):
        views = [dequantizer(graph, t) for t in _operands(graph, node)]
        if not views or not all(views) or _quantized(graph, node.outputs[0]):
            continue
        if node.op == "Add" and any(v is not None and _branch(graph, v) for v in views):
            continue
        yield node, "runs in float on numbers that have been rounded to int8"


@rule(
    "trt-partly-quantized",
    "slow",
    "some inputs quantised, others not",
    "quantise all inputs and the output, or none of them",
)
def _partly(graph: Graph) -> Found:
    for node in _alone(graph):
        tensors = _operands(graph, node)
        views = [dequantizer(graph, t) for t in tensors]
        if not any(views) or all(views):
            continue
        loose = [t for t, v in zip(tensors, views, strict=True) if v is None]
        if node.op != "Add" or not any(_behind(graph, t) for t in loose):
            yield node, f"'{loose[0].name}' is float: runs in float"


@rule(
    "trt-concat",
    "slow",
    "Concat of different scales",
    "give all inputs and the output one scale, the widest, so that Concat costs nothing; where they differ more than "
    "eightfold, take the Q/DQ off the inputs",
)
def _concat(graph: Graph) -> Found:
    for node in graph.walk():
        if node.op != "Concat" or node.domain:
            continue
        views = [v for t in node.inputs if (v := dequantizer(graph, t)) is not None]
        if len(views) == len(node.inputs) and _quantized(graph, node.outputs[0]):
            other = next((v for v in views[1:] if not qdq.same_parameters(graph, v, views[0])), None)
            if other is not None:
                yield node, f"'{views[0].outputs[0].name}' and '{other.outputs[0].name}' have different scales"


@rule(
    "trt-idle",
    "slow",
    "Q/DQ that no int8 operator needs",
    "remove the pair: it costs accuracy and two conversions",
)
def _idle(graph: Graph) -> Found:
    for node in graph.walk():
        if is_quantize(node) and (views := _views(node)) and not any(_useful(graph, v) for v in views):
            yield node, f"all that reads '{node.inputs[0].name}' behind it computes in float"


RULES = (
    _half,
    _axis,
    _bias,
    _cast,
    _epilogue,
    _residual,
    _two_scales,
    _float_output,
    _partly,
    _concat,
    _idle,
)


def _name(node: Node) -> str:
    return node.name or node.outputs[0].name


def _views(quantize: Node) -> list[Tensor]:
    """The float tensors behind a Q: of every DQ that reads its codes, also through copies and Cast."""
    found, pending = [], [quantize.outputs[0]]
    while pending:
        for node in readers(pending.pop()):
            if is_dequantize(node):
                found.append(node.outputs[0])
            elif node.op in qdq.COPIES or node.op in ("Cast", "Concat", "Gather"):
                pending.extend(t for t in node.outputs if t.name)
    return found


def _head(graph: Graph, tensor: Tensor) -> Node | None:
    """The weighted operator that makes the tensor, perhaps with a constant bias or scale and a normalisation behind."""
    node = maker(tensor)
    for _ in range(DEPTH):
        if node is None or weighted(node):
            return node
        if node.op not in ("Add", "Mul", "BatchNormalization") or node.domain:
            return None
        others = [t for t in node.inputs if not qdq.rooted(t)]
        node = maker(others[0]) if len(others) == 1 else None
    return None


def _fuses(graph: Graph, node: Node, view: Tensor, quantize: Node) -> bool:
    """True for an operator that a convolution's kernel would compute as well; `view` is what `quantize` makes."""
    if node.domain:
        return False
    if node.op in ("Add", "Mul"):
        return len(node.inputs) == 2 and all(t is view or qdq.rooted(t) for t in node.inputs)
    if node.op in ("Sigmoid", "HardSigmoid"):  # of a Swish
        gates = [node.outputs[0], *(v for n in readers(node.outputs[0]) if is_quantize(n) for v in _views(n))]
        products = [n for gate in gates for n in readers(gate) if n.op == "Mul"]
        return any(id(v) in {id(t) for t in n.inputs} for n in products for v in _views(quantize))
    return node.op in EPILOGUE and node.inputs[0] is view


def _sums(graph: Graph) -> Iterator[Node]:
    """Every Add of two tensors."""
    for node in graph.walk():
        if node.op == "Add" and not node.domain and not any(qdq.rooted(t) for t in node.inputs):
            yield node


def _branch(graph: Graph, view: Node) -> Node | None:
    """The convolution whose result this DQ alone passes on, or None."""
    quantize = maker(view.inputs[0])
    if quantize is None or not is_quantize(quantize):
        return None
    tensor, views = quantize.inputs[0], _views(quantize)
    head = _head(graph, tensor)
    if head is None or head.op not in ("Conv", "ConvTranspose") or len(views) > 1 or len(readers(views[0])) > 1:
        return None
    return head if graph.only_feeds(tensor, quantize) else None


def _behind(graph: Graph, tensor: Tensor) -> bool:
    """True where the tensor leaves a weighted operator, with element-wise operators and copies behind it at most."""
    pending, seen = [tensor], 0
    while pending and seen < DEPTH:
        node = maker(pending.pop())
        seen += 1
        if node is None or is_dequantize(node):
            continue
        if weighted(node):
            return True
        if node.op in POINTWISE or copies(graph, node):
            pending.extend(t for t in node.inputs if t.name and not qdq.rooted(t))
    return False


def _alone(graph: Graph) -> Iterator[Node]:
    """Operators without weights that have an int8 form of their own."""
    for node in graph.walk():
        if node.op in ALONE and not node.domain and not copies(graph, node) and len(node.outputs) == 1:
            yield node


def _operands(graph: Graph, node: Node) -> list[Tensor]:
    return [t for t in qdq.data(node) if not graph.is_constant(t)]


def _quantized(graph: Graph, tensor: Tensor) -> bool:
    """True where a Q is reached from the tensor through copies and element-wise operators."""
    pending, seen = [tensor], set[int]()
    while pending and len(seen) < 4 * DEPTH:
        for node in readers(pending.pop()):
            if is_quantize(node):
                return True
            if id(node) not in seen and (node.op in POINTWISE or copies(graph, node)):
                seen.add(id(node))
                pending.extend(t for t in node.outputs if t.name)
    return False


def _useful(graph: Graph, view: Tensor) -> bool:
    """True where some reader of a DQ's result, perhaps behind copies, computes in int8 or has a finding of its own."""
    pending = [view]
    while pending:
        for node in readers(pending.pop()):
            if weighted(node) or node.op in ALONE or is_quantize(node):
                return True
            if copies(graph, node) or (node.op == "Cast" and not node.domain):
                pending.extend(t for t in node.outputs if t.name)
            elif any(_quantized(graph, t) for t in node.outputs if t.name):
                return True
    return False
