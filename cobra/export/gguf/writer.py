"""The format `gguf`: the language model for llama.cpp, the towers as a graph, and a program that answers with both."""

from pathlib import Path
from typing import Any

from cobra.export.formats import ExportedModel
from cobra.export.gguf import runner
from cobra.export.gguf.model_file import check_exportable, write_gguf
from cobra.export.onnx import frontend
from cobra.export.onnx.writer import answers_of, write_frontend, write_program
from cobra.export.parity import prove_answers
from cobra.util import conversation, rgb

_PROGRAM = {"answer.py": runner, "frontend.py": frontend, "rgb.py": rgb, "conversation.py": conversation}
# llama.cpp adds up in another order, and where half precision rounds, another token may be as likely.
_SHARE = {"fp32": 0.99, "fp16": 0.9, "bf16": 0.8}


def write(model: ExportedModel, folder: Path) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`."""
    backbone = model.vlm.llm_backbone
    check_exportable(backbone.llm)
    write_gguf(backbone, folder / model.weights, model.vlm.model_id, model.dtype)
    write_frontend(model, folder, model.dtype == "fp16", {}, {})
    write_program(folder, _PROGRAM)
    return {"dtype": model.dtype}


def prove(model: ExportedModel, folder: Path, questions: int) -> dict[str, Any]:
    """See :class:`cobra.export.formats.Writer`."""
    written = runner.Runner(folder)
    return prove_answers(model.vlm, lambda asked: answers_of(written, asked), questions, _SHARE[model.dtype])
