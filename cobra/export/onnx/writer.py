"""The format `onnx`: three graphs, tokenizer, `inputs.json`, and a program that answers with them."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from cobra.export.formats import ExportedModel
from cobra.export.onnx import frontend, runner
from cobra.export.onnx.files import write_graphs
from cobra.export.onnx.language_model import check_exportable, decode_graph, prefill_graph, state_shapes
from cobra.export.onnx.vision import image_settings, vision_graph
from cobra.export.parity import MAX_NEW_TOKENS, Answer, Question, batches, prove_answers
from cobra.models.load import cast
from cobra.models.vlms import CobraVLM
from cobra.util import conversation, rgb
from cobra.util.files import write_json, write_text

# Modules that go along, by their names in the folder.
_PROGRAM = {"answer.py": runner, "frontend.py": frontend, "rgb.py": rgb, "conversation.py": conversation}
# Where half precision rounds, another token may be as likely.
_SHARE = {"fp32": 1.0, "fp16": 0.9}


def write(model: ExportedModel, folder: Path) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`."""
    llm, half = model.vlm.llm_backbone.llm, model.dtype == "fp16"
    check_exportable(llm)
    graphs = {"prefill.onnx": prefill_graph(llm, half), "decode.onnx": decode_graph(llm, half)}
    write_graphs(folder, graphs, "language_model.data")
    described = {name: _described(graph) for name, graph in graphs.items()}
    state = {name: list(shape) for name, shape in state_shapes(llm.config).items()}
    write_frontend(model, folder, half, described, {"state": state})
    write_program(folder, _PROGRAM)
    return {"dtype": model.dtype}


def write_frontend(
    model: ExportedModel, folder: Path, half: bool, described: dict[str, Any], more: dict[str, Any]
) -> None:
    """Write the towers' graph, the tokenizer and `inputs.json`, of which :class:`frontend.Frontend` is the reader.

    Args:
        model: The model.
        folder: Folder to write into.
        half: Write the towers in float16.
        described: Inputs and outputs of other graphs, by their names.
        more: Further entries of `inputs.json`.
    """
    vlm = model.vlm
    tokenizer = deepcopy(vlm.llm_backbone.tokenizer.backend_tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    if half:
        vlm = deepcopy(vlm)
        cast(vlm, torch.float16)
    towers = vision_graph(vlm)
    write_graphs(folder, {"vision.onnx": towers}, "vision.data")
    inputs = _inputs(vlm, str(model.source.fields["image_resize_strategy"])) | more
    write_json(folder / "inputs.json", inputs | {"graphs": {"vision.onnx": _described(towers)} | described})


def _inputs(vlm: CobraVLM, resize: str) -> dict[str, Any]:
    """Return what a program must know of a model to use it, whatever runs its language model."""
    tokenizer, builder = vlm.llm_backbone.tokenizer, vlm.get_prompt_builder()
    builder.add_turn("human", "{message}")
    return {
        "format": 1,
        "images": image_settings(vlm, resize),
        "prompt": builder.get_prompt(),
        "ids": {"end": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id},
        "vocabulary": vlm.llm_backbone.llm.config.padded_vocab_size,
        "max_text_length": vlm.max_text_length,
        "d_model": vlm.llm_backbone.embed_dim,
    }


def _described(model: ir.Model) -> dict[str, Any]:
    """Return the inputs and outputs of a graph: kind of numbers and shape, free dimensions by their names."""
    sides = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
    return {
        side: {str(value.name): [str(value.dtype), *map(_dimension, value.shape or ())] for value in values}
        for side, values in sides.items()
    }


def _dimension(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size.value)


def write_program(folder: Path, modules: dict[str, Any]) -> None:
    """Write modules of this package into a folder, under their names there, so that they import one another there."""
    for name, module in modules.items():
        text = Path(module.__file__).read_text(encoding="utf-8")
        for other, neighbour in modules.items():
            text = text.replace(f"from {neighbour.__name__} import", f"from {Path(other).stem} import")
        write_text(folder / name, text)


def prove(model: ExportedModel, folder: Path, questions: int) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`."""
    written = runner.Runner(folder)
    return prove_answers(model.vlm, lambda asked: answers_of(written, asked), questions, _SHARE[model.dtype])


def answers_of(written: frontend.FrontendRunner, questions: Sequence[Question]) -> list[Answer]:
    """Answer questions with an exported folder."""
    answers: dict[int, Answer] = {}
    for numbers in batches(questions):
        part = [questions[number] for number in numbers]
        pictures = [each.picture for each in part if each.picture is not None]
        features = written.frontend.features(pictures) if pictures else None
        prompts = [written.frontend.prompt(each.text) for each in part]
        ids, first = written.write(features, prompts, MAX_NEW_TOKENS)
        answers |= {
            number: Answer(own, torch.from_numpy(scores))
            for number, own, scores in zip(numbers, ids, first, strict=True)
        }
    return [answers[number] for number in range(len(questions))]
