"""The one printed form of a graph: stable, diffable, close to the ONNX text syntax; used by tests and --dump."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from optimizer.graph import Constant, Graph, Node, Tensor, peek
from optimizer.io import nbytes

SHOWN = 8  # elements: larger constants are shown by type and shape only


def show(graph: Graph) -> str:
    """The graph as text: inputs, constants in order of use, one line a node, outputs."""
    assert graph.header is not None
    imports = ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in sorted(graph.header.imports.items()))
    lines = [f"opset {imports}"]
    lines += [f"input  {t.name}: {kind(t)}" for t in graph.inputs]
    lines += [f"input  {n}: {kind(t)} = {_value(t)}" for n, t in graph.overridable.items()]
    lines += _body(graph, "")
    lines += [f"output {t.name}: {kind(t)}" for t in graph.outputs]
    return "\n".join(lines) + "\n"


def _body(graph: Graph, indent: str) -> list[str]:
    lines, seen = [], set[int]()
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and id(tensor) not in seen and not graph.is_input(tensor):
                seen.add(id(tensor))
                lines.append(f"{indent}const  {tensor.name}: {kind(tensor)} = {_value(tensor)}")
        lines += _node(node, indent)
    return lines


def _node(node: Node, indent: str) -> list[str]:
    outputs = ", ".join(t.name for t in node.outputs)
    inputs = ", ".join(t.name for t in node.inputs)
    plain = {k: v for k, v in node.attrs.items() if not isinstance(v, Graph)}
    attrs = f"<{', '.join(f'{k}={_attr(v)}' for k, v in sorted(plain.items()))}>" if plain else ""
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    lines = [f"{indent}{outputs} = {op}{attrs}({inputs})"]
    for key, body in sorted((k, v) for k, v in node.attrs.items() if isinstance(v, Graph)):
        names = ", ".join(t.name for t in body.inputs)
        lines.append(f"{indent}  {key}({names}):")
        lines += _body(body, indent + "    ")
        lines.append(f"{indent}    -> {', '.join(t.name for t in body.outputs)}")
    return lines


def kind(tensor: Tensor) -> str:
    """Type and shape of a tensor, as `float32[N,3,?]`."""
    if isinstance(getattr(tensor, "type", None), onnx.TypeProto):
        return str(tensor.type.WhichOneof("value"))
    name = "?" if tensor.dtype is None else str(np.dtype(tensor.dtype))
    if tensor.shape is None:
        return name
    return f"{name}[{','.join('?' if d is None else str(d) for d in tensor.shape)}]"


def _value(tensor: Constant) -> str:
    if int(np.prod(tensor.shape)) > SHOWN:
        return f"... ({nbytes(tensor)} bytes)"
    array = peek(tensor)
    return np.array2string(array, separator=", ", precision=7).replace("\n", "")


def _attr(value: Any) -> str:
    if isinstance(value, Constant):
        return f"{kind(value)} {_value(value)}"
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value).replace("\n", " ")
