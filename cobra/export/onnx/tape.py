"""A graph of ONNX while it is built: one call for each operation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

# RMS norms, softplus, Scan and Split with a number of outputs are all in this version of the operators.
OPSET = 20
_IR_VERSION = 10


class GraphTape:
    """Operations in the order in which they are added.

    Weights are float16 where `half`, and so is what runs between them; :meth:`wide` and :meth:`narrow` go to and fro.
    """

    def __init__(self, half: bool) -> None:
        self.half = half
        self._tape = ir.tape.Tape()
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add an operation with one output."""
        return self._tape.op(kind, inputs, attributes)

    def split(self, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
        """Cut the last dimension into parts of these sizes."""
        return self._tape.op_multi_out("Split", [value, self.ints(*sizes)], {"axis": -1}, num_outputs=len(sizes))

    def scan(self, state: ir.Value, inputs: Sequence[ir.Value], body: ir.Graph) -> Sequence[ir.Value]:
        """Run `body` over time, inputs (batch, time, ...); return the last state, and outputs (batch, time, ...)."""
        axes = [1] * len(inputs)
        attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(inputs)}
        attributes |= {"scan_input_axes": axes, "scan_output_axes": [1]}
        return self._tape.op_multi_out("Scan", [state, *inputs], attributes, num_outputs=2)

    def weight(self, name: str, values: np.ndarray, wide: bool = False) -> ir.Value:
        """Add a weight; `wide` leaves it in float32."""
        dtype = np.float16 if self.half and not wide else np.float32
        return self._tape.initializer(ir.tensor(np.ascontiguousarray(values, dtype=dtype), name=name), name)

    def ints(self, *values: int) -> ir.Value:
        """Return a constant (n,) int64."""
        return self._constant(("ints", *values), np.array(values, dtype=np.int64))

    def int(self, value: int) -> ir.Value:
        """Return a constant scalar int64."""
        return self._constant(("int", value), np.array(value, dtype=np.int64))

    def float(self, value: float) -> ir.Value:
        """Return a constant scalar float32."""
        return self._constant(("float", value), np.array(value, dtype=np.float32))

    def _constant(self, key: tuple[Any, ...], value: np.ndarray) -> ir.Value:
        if key not in self._constants:
            name = "_".join(["constant", *map(str, key)])
            self._constants[key] = self._tape.initializer(ir.tensor(value, name=name), name)
        return self._constants[key]

    def wide(self, value: ir.Value) -> ir.Value:
        """Return a value of the weights' kind in float32."""
        return self.op("Cast", value, to=ir.DataType.FLOAT.value) if self.half else value

    def narrow(self, value: ir.Value) -> ir.Value:
        """Return a float32 value in the weights' kind."""
        return self.op("Cast", value, to=ir.DataType.FLOAT16.value) if self.half else value

    def silu(self, value: ir.Value) -> ir.Value:
        """Return x sigmoid(x)."""
        return self.op("Mul", value, self.op("Sigmoid", value))

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """Operations so far."""
        return self._tape.nodes

    def model(self, name: str, inputs: Sequence[ir.Value], outputs: dict[str, ir.Value]) -> ir.Model:
        """Return what was added as a model; outputs get their names here."""
        for output, value in outputs.items():
            value.name = output
        graph = ir.Graph(
            inputs,
            list(outputs.values()),
            nodes=self.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="cobra-vlm")


def tensor_input(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    """Return an input of a graph; a dimension that is a text is free."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def typed(value: ir.Value, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    """Return an output of a graph with its type and shape stated."""
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return value
