"""The typed face of graphsurgeon's tensors and nodes; the one module that names its classes.

At run time `Tensor` is graphsurgeon's own class; `Variable`, `Constant` and `Node` are subclasses of its own. A node
equals only itself (the original's deep `__eq__` makes detaching 4,000 readers take 14 s), and all three are made
without the original constructors, which take half of the time to read a large model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Dim = int | str | None  # a number, a symbol, or unknown

if TYPE_CHECKING:

    class Tensor:
        """A value in a graph: `inputs` are its producers (at most one), `outputs` its readers, captures included."""

        name: str
        dtype: Any
        shape: Any
        type: Any
        inputs: list[Any]
        outputs: list[Any]

        def copy(self) -> Tensor: ...

    class PlainVariable(Tensor):
        pass

    class PlainConstant(Tensor):
        pass

    class PlainNode:
        op: str
        name: str
        attrs: dict[str, Any]
        inputs: list[Tensor]
        outputs: list[Tensor]
        domain: str | None

    class Linked(list[Tensor]):
        """A node's inputs or outputs: `field_name` of each tensor in it holds the node, `parent_obj`."""

        parent_obj: Any
        field_name: str

    class PlainGraph:
        nodes: list[Any]
        inputs: list[Tensor]
        outputs: list[Tensor]
        name: str
        doc_string: str

        def __init__(self, *, inputs: Sequence[Tensor] = (), name: str = "", doc_string: str = ""): ...

    class LazyValues:
        tensor: Any
        shape: tuple[int, ...]
        dtype: Any
        nbytes: int

else:
    from onnx_graphsurgeon import Constant as PlainConstant
    from onnx_graphsurgeon import Graph as PlainGraph  # noqa: F401
    from onnx_graphsurgeon import Node as PlainNode  # noqa: F401
    from onnx_graphsurgeon import Tensor as Tensor
    from onnx_graphsurgeon import Variable as PlainVariable
    from onnx_graphsurgeon.ir.tensor import LazyValues as LazyValues
    from onnx_graphsurgeon.logger import G_LOGGER
    from onnx_graphsurgeon.util.misc import SynchronizedList as Linked

    G_LOGGER.severity = G_LOGGER.CRITICAL  # graphsurgeon logs to stdout, which belongs to results


class Variable(PlainVariable):
    """A tensor whose value is known at run time only. One without a name stands for an omitted input or output."""

    def __init__(self, name: str, dtype: Any = None, shape: Sequence[Dim] | None = None):
        self.__dict__.update(name=name, dtype=dtype, shape=shape, type="tensor_type", inputs=[], outputs=[])

    __setattr__ = object.__setattr__  # a tensor's producers and readers are plain lists: only its nodes change them

    @staticmethod
    def empty() -> Variable:
        return Variable("")

    def copy(self) -> Variable:
        return Variable(self.name, self.dtype, self.shape)


class Constant(PlainConstant):
    """An initializer: `values` is an array, or stands for one that is still in the file."""

    _values: Any

    def __init__(self, name: str, values: Any):
        self.__dict__.update(name=name, _values=values, data_location=None, _export_dtype=None, inputs=[], outputs=[])

    __setattr__ = object.__setattr__

    def copy(self) -> Constant:
        return Constant(self.name, self._values)


def linked(node: Any, field: str, tensors: Iterable[Tensor]) -> Linked:
    """A node's inputs (`field` outputs: where tensors list their readers) or outputs (inputs: their makers)."""
    made = Linked.__new__(Linked)
    made.parent_obj, made.field_name = node, field
    list.extend(made, tensors)
    for tensor in made:
        getattr(tensor, field).append(node)
    return made


def peek(tensor: Constant) -> Array:
    """The values of an initializer, read-only. Weights still in the file are read and not kept."""
    stored = tensor._values
    values = np.asarray(stored if isinstance(stored, np.ndarray) else stored.load())
    if values.flags.writeable:
        values = values.view()
        values.flags.writeable = False
    return values
