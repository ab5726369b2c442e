"""Prefill and decode step of Mamba-1 as graphs of ONNX, for any number of rows and tokens.

Built operation by operation: `torch.export` takes 6 s a layer to trace the scan, and copies the state of all layers in
each of them. The scan of a prefill is ONNX's `Scan` over one step; the decode step has no loop. Inside, states lie as
(batch, d_state, d_inner): runtimes are fast where the innermost dimension is long.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from cobra.export.onnx.tape import GraphTape, tensor_input, typed
from cobra.models.mamba import MambaConfig, MambaLM
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.util.errors import UserError

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def state_shapes(config: MambaConfig) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes of the state's tensors by name, the free dimension as its name."""
    return {
        "conv": (config.n_layer, "batch", config.d_inner, config.d_conv),
        "ssm": (config.n_layer, "batch", config.d_state, config.d_inner),
    }


def check_exportable(llm: MambaLM) -> None:
    """Raise a UserError where a language model has mixers that the graphs do not know."""
    if type(llm.backbone.layers[0].mixer) is not Mamba1Mixer:
        raise UserError(
            f"the language model's mixer is {llm.config.mixer!r}, and only Mamba1 can be written in this format; "
            "--format pt and --format safetensors hold any"
        )


def prefill_graph(llm: MambaLM, half: bool) -> ir.Model:
    """Return the graph that reads rows of [image features ; text], padded on the right, into the state.

    Inputs: `image_features` (batch, positions, d_model), where positions may be 0; `input_ids` (batch, text);
    `attention_mask` (batch, positions + text), 1 on what is to be read and then 0; the state before. Outputs: `logits`
    (batch, vocabulary) after each row's last token, and the state.
    """
    tape, width = GraphTape(half), llm.config.d_model
    features = tensor_input("image_features", FLOAT, "batch", "positions", width)
    ids = tensor_input("input_ids", INT64, "batch", "text")
    mask = tensor_input("attention_mask", INT64, "batch", "positions_and_text")
    network = _Network(tape, llm)
    hidden = tape.op("Concat", features, tape.wide(network.embed(ids)), axis=1)
    lengths = tape.op("ReduceSum", mask, tape.ints(1), keepdims=0)
    valid = tape.op("Unsqueeze", tape.op("Cast", mask, to=FLOAT.value), tape.ints(-1))
    return network.finish("prefill", (features, ids, mask), hidden, (lengths, valid))


def decode_graph(llm: MambaLM, half: bool) -> ir.Model:
    """Return the graph that reads one token of every row, `input_ids` (batch, 1), into the state; see the prefill."""
    network = _Network(GraphTape(half), llm)
    ids = tensor_input("input_ids", INT64, "batch", 1)
    return network.finish("decode", (ids,), network.tape.wide(network.embed(ids)), None)


class _Network:
    """The language model's layers on a tape; the residual stream is float32."""

    def __init__(self, tape: GraphTape, llm: MambaLM) -> None:
        self.tape, self.llm, self.config = tape, llm, llm.config
        self.embedding = self._weight("embedding", llm.backbone.embedding.weight)

    def embed(self, ids: ir.Value) -> ir.Value:
        """Return embeddings (batch, text, d_model), in the weights' kind."""
        return self.tape.op("Gather", self.embedding, ids)

    def finish(
        self, name: str, inputs: tuple[ir.Value, ...], stream: ir.Value, padding: tuple[ir.Value, ir.Value] | None
    ) -> ir.Model:
        """Run all layers on embeddings (batch, time, d_model) and return the whole graph.

        Args:
            name: Name of the graph.
            inputs: Its inputs before the state.
            stream: The embeddings.
            padding: Lengths (batch,) int64, and validity (batch, time, 1) float32; None for a single token a row.
        """
        tape, shapes = self.tape, state_shapes(self.config)
        state = {part: tensor_input(part, FLOAT, *shape) for part, shape in shapes.items()}
        after: dict[str, list[ir.Value]] = {part: [] for part in state}
        for index, block in enumerate(self.llm.backbone.layers):
            layer = {part: tape.op("Gather", value, tape.int(index), axis=0) for part, value in state.items()}
            normed = self._norm(f"layers.{index}.norm", block.norm, stream)
            mixed, layer = self._mix(f"layers.{index}", block.mixer, normed, layer, padding)
            stream = tape.op("Add", stream, tape.wide(mixed))
            for part, value in layer.items():
                after[part].append(tape.op("Unsqueeze", value, tape.ints(0)))
        last = tape.ints(-1) if padding is None else tape.op("Sub", padding[0], tape.ints(1))
        if padding is None:
            stream = tape.op("Squeeze", stream, tape.ints(1))
        else:
            stream = tape.op("GatherND", stream, tape.op("Unsqueeze", last, tape.ints(-1)), batch_dims=1)
        normed = self._norm("norm_f", self.llm.backbone.norm_f, stream)
        logits = tape.wide(tape.op("Gemm", normed, self.embedding, transB=1))
        outputs = {"logits": typed(logits, FLOAT, "batch", self.config.padded_vocab_size)}
        for part, values in after.items():
            outputs[f"{part}_after"] = typed(tape.op("Concat", *values, axis=0), FLOAT, *shapes[part])
        return tape.model(name, (*inputs, *state.values()), outputs)

    def _weight(self, name: str, parameter: Any, wide: bool = False) -> ir.Value:
        return self.tape.weight(name, parameter.detach().float().cpu().numpy(), wide)

    def _linear(self, name: str, layer: Any, value: ir.Value) -> ir.Value:
        product = self.tape.op("MatMul", value, self._weight(f"{name}.weight", layer.weight.t()))
        return product if layer.bias is None else self.tape.op("Add", product, self._weight(f"{name}.bias", layer.bias))

    def _norm(self, name: str, norm: Any, stream: ir.Value) -> ir.Value:
        """Return the stream divided by its root mean square, in the weights' kind."""
        tape = self.tape
        square = tape.op("ReduceMean", tape.op("Pow", stream, tape.float(2.0)), tape.ints(-1), keepdims=1)
        root = tape.op("Sqrt", tape.op("Add", square, tape.float(norm.eps)))
        weight = self._weight(f"{name}.weight", norm.weight, wide=True)
        return tape.narrow(tape.op("Mul", tape.op("Div", stream, root), weight))

    def _mix(
        self,
        name: str,
        mixer: Any,
        normed: ir.Value,
        state: dict[str, ir.Value],
        padding: tuple[ir.Value, ir.Value] | None,
    ) -> tuple[ir.Value, dict[str, ir.Value]]:
        """Run a mixer on (batch, time, d_model); return its output and its layer's state after."""
        tape, width = self.tape, self.config.d_inner
        inputs, gate = tape.split(self._linear(f"{name}.in_proj", mixer.in_proj, normed), [width, width])
        u, conv = self._convolve(name, mixer, inputs, state["conv"], padding)
        projected = self._linear(f"{name}.x_proj", mixer.x_proj, u)
        dt, B, C = tape.split(projected, [mixer.rank, mixer.d_state, mixer.d_state])
        dt = tape.op("MatMul", dt, self._weight(f"{name}.dt_proj.weight", mixer.dt_proj.weight.t()))
        dt_bias = self._weight(f"{name}.dt_proj.bias", mixer.dt_proj.bias, wide=True)
        delta = tape.op("Softplus", tape.op("Add", tape.wide(dt), dt_bias))
        if padding is not None:
            # Where it is 0 the state stays as it is.
            delta = tape.op("Mul", delta, padding[1])
        u = tape.wide(u)
        rates = self._weight(f"{name}.A", -mixer.A_log.float().exp().t(), wide=True)
        over_time = (delta, tape.op("Mul", delta, u), tape.wide(B), tape.wide(C))
        if padding is None:
            ssm, y = _scan_step(tape, state["ssm"], rates, *over_time)
        else:
            ssm, y = tape.scan(state["ssm"], over_time, _scan_body(self.config, name, rates))
        y = tape.op("Add", y, tape.op("Mul", u, self._weight(f"{name}.D", mixer.D, wide=True)))
        gated = tape.narrow(tape.op("Mul", y, tape.silu(tape.wide(gate))))
        return self._linear(f"{name}.out_proj", mixer.out_proj, gated), {"conv": conv, "ssm": ssm}

    def _convolve(
        self,
        name: str,
        mixer: Mamba1Mixer,
        inputs: ir.Value,
        window: ir.Value,
        padding: tuple[ir.Value, ir.Value] | None,
    ) -> tuple[ir.Value, ir.Value]:
        """Return the convolution with its SiLU (batch, time, d_inner), and the window of each row's last inputs."""
        tape, taps = self.tape, self.config.d_conv
        channels = tape.op("Transpose", tape.wide(inputs), perm=[0, 2, 1])
        seen = tape.op("Concat", window, channels, axis=2)
        ahead = tape.op("Slice", seen, tape.ints(1), tape.ints(np.iinfo(np.int64).max), tape.ints(2))
        weight = self._weight(f"{name}.conv1d.weight", mixer.conv1d.weight)
        bias = mixer.conv1d.bias
        parts = [weight] if bias is None else [weight, self._weight(f"{name}.conv1d.bias", bias)]
        out = tape.op("Conv", tape.narrow(ahead), *parts, group=self.config.d_inner, kernel_shape=[taps])
        out = tape.op("Transpose", tape.silu(out), perm=[0, 2, 1])
        if padding is None:
            return out, ahead
        # A row's last inputs end where its text does.
        offsets = tape.ints(*range(taps))
        places = tape.op("Add", tape.op("Unsqueeze", padding[0], tape.ints(1, 2)), offsets)
        return out, tape.op("GatherElements", seen, tape.op("Expand", places, tape.op("Shape", window)), axis=2)


def _scan_step(
    tape: GraphTape, state: ir.Value, rates: ir.Value, delta: ir.Value, drive: ir.Value, B: ir.Value, C: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return the state (batch, d_state, d_inner) after one step, and the output (batch, 1, d_inner).

    `delta` and `drive` are (batch, 1, d_inner), `B` and `C` (batch, 1, d_state).
    """
    decay = tape.op("Exp", tape.op("Mul", delta, rates))
    drive = tape.op("Mul", drive, tape.op("Transpose", B, perm=[0, 2, 1]))
    state = tape.op("Add", tape.op("Mul", decay, state), drive)
    return state, tape.op("MatMul", C, state)


def _scan_body(config: MambaConfig, name: str, rates: ir.Value) -> ir.Graph:
    """Return one step of the scan, inputs without time, as the body of a loop; `rates` are of the graph around it."""
    tape = GraphTape(half=False)
    state = tensor_input(f"{name}.h", FLOAT, "batch", config.d_state, config.d_inner)
    widths = {"delta": config.d_inner, "drive": config.d_inner, "B": config.d_state, "C": config.d_state}
    inputs = [tensor_input(f"{name}.{part}_t", FLOAT, "batch", width) for part, width in widths.items()]
    axis = ir.Value(name=f"{name}.axis")
    after, y = _scan_step(tape, state, rates, *(tape.op("Unsqueeze", each, axis) for each in inputs))
    y = tape.op("Squeeze", y, axis)
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array([1])))], outputs=[axis])
    after.name, y.name = f"{name}.h_after", f"{name}.y_t"
    nodes = [constant, *tape.nodes]
    for number, node in enumerate(nodes):
        for output in node.outputs:
            output.name = output.name or f"{name}.scan_{number}"
    return ir.Graph([state, *inputs], [after, y], nodes=nodes, name=f"{name}.scan")
