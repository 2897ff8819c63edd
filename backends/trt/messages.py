"""Makes one line of what TensorRT says when it refuses a model: which node, why, and what to do about it.

The parser reports nodes; the builder only writes to the log, where names of nodes stand inside sentences. An If is the
usual culprit: both of its branches are built for every size, and an If inside an If needs fixed sizes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.engine import BuildError
from optimizer.graph import Graph, Node, Tensor

NOISE = re.compile(r"catchCudaError|cudaError 35|Cuda Runtime \(In ")  # said of every check on a machine without a GPU
PLACE = re.compile(r"\.?\s+In \S.*? at \S+:\d+\)?$")
CODE = re.compile(r"^(?:\[[^\]]*\]|[\w:]+:)?\s*Error Code \d+: [^(]*\((?P<what>.*?)\)?$", re.DOTALL)
PREFIXES = re.compile(
    r"^(\?: |\[[\w.]+:\d+: \w+\] |Assertion failed: [^\"]*?: (?=[A-Z])|MyelinCheckException: |\w+\.\w+:\d+: )"
)
QUOTED = re.compile(r"&& \"(?P<what>[^\"]+)\"")
INVALID = re.compile(r"^Invalid Node - (?P<node>.*)$")
START, WORD = r"(?:^|[\s\[{('\",+]|\.\.\.)", r"(?:node |layer |[\[{'\"(])"
END, TYPED = r"$|[\s\]})'\",:;+]|\.(?:\s|$|\)|\.\.)", r"-\("
SHOWN = 240  # characters of one complaint


@dataclass(frozen=True)
class Complaint:
    """What TensorRT says of one ONNX node; of none where `node` is empty."""

    node: str
    op: str
    text: str


ADVICE: tuple[tuple[str, str], ...] = (
    (r"DynamicQuantize|QLinear|ConvInteger|MatMulInteger", "the pass dequantize turns it back into float operators"),
    (r"no such operator|[Pp]lugin", "give a library that has it with --plugin, or export the model without it"),
    (r"must have same input types|same types", "its inputs differ in precision: a Cast belongs before it"),
    (r"Int32 but must have type", "TensorRT takes no int32 there: an int32 bias of a quantized model must be float"),
    (r"zero point", "quantize symmetrically, with zero points of 0"),
    (r"UInt8 but must|INT16|UINT16|data type|date type", "cast it to float, int32 or int64 before, in the model"),
    (r"Turing \(SM75\)", "leave sm_75 out of --gpu"),
    (r"libnvinfer_lean|[Ll]ean", "a version-compatible engine needs the lean runtime, which pip does not bring here"),
    (r"status == CUDA_SUCCESS", "stripped and refittable engines are built where a GPU is: leave those options out"),
    (r"IOptimizationProfile|profile", "check the sizes given with --shape"),
    (r"[Oo]ut of memory|workspace|MEM_ALLOC", "allow more memory with --workspace, or build for smaller sizes"),
    (
        r"any implementation|Cannot compile operation|Could not infer output types",
        "keep this node in higher precision, or try another --gpu",
    ),
)
OTHERWISE = "export the model without it, with a newer operator set or with fixed sizes"


def parser_complaints(parser: Any) -> list[Complaint]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [_complaint(e.node_name(), e.node_operator(), e.desc()) for e in errors]


def _complaint(node: str, op: str, text: str) -> Complaint:
    lines = [line for line in text.splitlines() if line.strip()]
    named = [match["node"] for line in lines if (match := INVALID.match(line))]
    said = [clean(line) for line in lines if not INVALID.match(line) and not NOISE.search(line)]
    what = "; ".join(dict.fromkeys(said)) if said else "it is not valid"
    if what == "false" or "Plugin not found" in what:
        what = "there is no such operator"
    node = node or next(iter(named), "")
    return Complaint(node, op, what.removeprefix(f"{node}: "))


def builder_complaints(lines: Iterable[tuple[int, str]], layers: Mapping[str, str], graph: Graph) -> list[Complaint]:
    """The errors in the log, each with the first node it names; `layers`: ONNX nodes by what the network calls them."""
    ops = {node.name: node.op for node in graph.walk()}
    known = {**layers, **{name: name for name in ops}}
    found = []
    for severity, text in lines:
        if severity > 1 or NOISE.search(text):
            continue
        nodes = mentioned(text, known) or ("",)
        found += [Complaint(node, ops.get(node, ""), clean(text)) for node in nodes]
    return found or [Complaint("", "", "it gave no reason")]


def clean(text: str) -> str:
    """A message without codes, source places and assertions' wrapping, on one line."""
    text = " ".join(text.split())
    while (match := CODE.match(text)) is not None:
        text = match["what"]
    text = PLACE.sub("", text)
    while (shorter := PREFIXES.sub("", text)) != text:
        text = shorter
    quoted = QUOTED.search(text)
    text = (quoted["what"] if quoted else text).strip(" .")
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def mentioned(text: str, known: Mapping[str, str]) -> tuple[str, ...]:
    """The ONNX nodes a sentence names, longest names first tried, in the order of the sentence.

    A name counts where it stands between blanks, brackets, quotes or dots of an ellipsis; one that could be a word
    (`add`) only behind "node", "layer" or a bracket, or before a type, as in `add-(fp16[1,8]`.
    """
    found: dict[int, str] = {}
    for name in sorted(known, key=len, reverse=True):
        if not name or name not in text:
            continue
        own = re.escape(name)
        before = WORD if name.isalpha() else START
        for match in re.finditer(rf"(?:{before}(?={own}(?:{END}))|{START}(?={own}{TYPED})){own}", text):
            start, end = match.end() - len(name), match.end()
            found.setdefault(start, known[name])
            text = text[:start] + "\0" * len(name) + text[end:]
    return tuple(dict.fromkeys(found[start] for start in sorted(found)))


def refusal(title: str, complaints: Sequence[Complaint], graph: Graph) -> BuildError:
    """The error for a model that the parser or the builder refuses; `complaints` has at least one."""
    first, *rest = complaints
    nodes = tuple(dict.fromkeys(c.node for c in complaints if c.node))
    op = f" ({first.op})" if first.op else ""
    where = f" node '{first.node}'{op}" if first.node else " the model"
    others = len(nodes) - 1 if first.node else 0
    ops = ", ".join(dict.fromkeys(c.op for c in rest if c.op))
    more = f" (and {others} more nodes: {ops})" if others > 0 and ops else ""
    advice = _advice(f"{first.op} {first.text}") or branch_advice(graph, nodes) or OTHERWISE
    return BuildError(f"{title} does not take{where}: {first.text}{more}; {advice}", nodes)


def _advice(text: str) -> str:
    return next((what for pattern, what in ADVICE if re.search(pattern, text)), "")


def branch_advice(graph: Graph, nodes: Sequence[str]) -> str:
    """What to do where the trouble is an If: one that holds a failing node, or another If; else nothing."""
    branches = [node for node in graph.walk() if node.op == "If"]
    holding = [node for node in branches if _holds(node, lambda inner: inner.name in nodes)]
    nested = [node for node in branches if _holds(node, lambda inner: inner.op == "If")]
    for node in [*holding, *nested] if nodes else [*nested, *branches]:
        if deciding := _deciding(graph, node.inputs[0]):
            names = " ".join(f"--freeze {name}=VALUE" for name in deciding)
            what = (
                "holds another If, which is built for fixed sizes only"
                if node in nested
                else "is built with both branches"
            )
            return f"the If '{node.name}' {what}: bind what decides it with {names}, so that one branch stays"
    for node in holding or nested or ([] if nodes else branches):
        return f"both branches of the If '{node.name}' are built: give sizes that suit both with --shape, or fix them"
    return ""


def _holds(node: Node, wanted: Callable[[Node], bool]) -> bool:
    return any(wanted(inner) for body in node.bodies() for inner in body.walk())


def _deciding(graph: Graph, condition: Tensor) -> list[str]:
    """The model's inputs whose values, not sizes, decide a condition."""
    own = {id(tensor) for tensor in graph.inputs}
    return list(dict.fromkeys(tensor.name for tensor in _behind(condition) if id(tensor) in own))


def _behind(tensor: Tensor) -> Iterator[Tensor]:
    seen: set[int] = set()
    pending = [tensor]
    while pending:
        current = pending.pop()
        if id(current) in seen or not current.name:
            continue
        seen.add(id(current))
        yield current
        for maker in current.inputs:
            if maker.op not in ("Shape", "Size"):
                pending.extend(maker.inputs)
