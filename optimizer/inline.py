"""Local functions become the nodes they stand for: onnx's inliner does it, on a copy that it reads correctly.

It forgets the default values of a function's attributes, so each call gets them written out, and the operator sets that
a function alone imports. It skips functions of another standard set than the model's, so one whose operators mean the
same in both is moved to the model's set; any other is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import inliner

from optimizer.errors import ModelError

STANDARD = ("", "ai.onnx")


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without local functions; the argument stays as it is. Raises ModelError where that cannot be had."""
    ready = onnx.ModelProto()
    ready.CopyFrom(model)
    known = {(f.domain, f.name, f.overload): f for f in ready.functions}
    imported = {o.domain for o in ready.opset_import}
    for function in ready.functions:
        _move(function, ready)
        for own in function.opset_import:
            if own.domain not in imported and own.domain not in STANDARD:
                ready.opset_import.add().CopyFrom(own)
                imported.add(own.domain)
    for node in _nodes(n for body in (ready.graph, *ready.functions) for n in body.node):
        if (called := known.get((node.domain, node.op_type, node.overload))) is not None:
            given = {a.name for a in node.attribute}
            node.attribute.extend(a for a in called.attribute_proto if a.name not in given)
    try:
        made = inliner.inline_local_functions(ready)
    except Exception as error:  # the inliner raises bare C++ exceptions
        raise ModelError(f"the model's local functions cannot be inlined: {str(error).splitlines()[0]}") from error
    if made.functions:
        left = made.functions[0]
        versions = ", ".join(f"'{o.domain}' {o.version}" for o in left.opset_import)
        raise ModelError(
            f"the local function '{left.name}' is written for other operator sets ({versions}) than the model: "
            "export the model again with one version of each"
        )
    return made


def _move(function: onnx.FunctionProto, model: onnx.ModelProto) -> None:
    """Gives a function the model's version of the standard operator set, where its operators are the same in both."""
    version = next((o.version for o in model.opset_import if o.domain in STANDARD), None)
    for own in function.opset_import:
        if version is None or own.domain not in STANDARD or own.version == version:
            continue
        ops = {n.op_type for n in _nodes(function.node) if n.domain in STANDARD}
        if all(_since(op, own.version) == _since(op, version) for op in ops):
            own.version = version


def _since(op: str, version: int) -> int | None:
    """The version in which an operator got the meaning it has in `version` of the standard set."""
    try:
        return int(onnx.defs.get_schema(op, version, "").since_version)
    except onnx.defs.SchemaError:
        return None


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g.node)
