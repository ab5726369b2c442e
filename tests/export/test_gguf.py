"""The GGUF export: a file of llama.cpp's `mamba`, and answers about pictures from llama.cpp as the model's."""

import json
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest
import torch

import cobra
from cobra.export.config import ExportConfig
from cobra.export.export import export
from cobra.export.parity import parity_questions
from cobra.util.errors import UserError

gguf = pytest.importorskip("gguf")
from cobra.export.gguf.model_file import chat_template, check_exportable, write_gguf  # noqa: E402


@pytest.fixture(scope="module")
def backbone():
    return cobra.load("cobra-tiny", device="cpu", dtype="fp32").llm_backbone


@pytest.fixture(scope="module")
def file(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(backbone, path, "cobra-tiny", "fp32")
    return gguf.GGUFReader(path)


def test_the_file_holds_every_tensor_in_llama_cpps_form(backbone, file):
    tensors = {tensor.name: np.array(tensor.data) for tensor in file.tensors}
    mixer = backbone.llm.backbone.layers[2].mixer
    # Ten tensors a layer, the embedding, which is the head too, and the last norm.
    assert len(tensors) == 10 * backbone.llm.config.n_layer + 2
    assert np.array_equal(tensors["blk.2.ssm_a"], -mixer.A_log.exp().numpy())
    assert np.array_equal(tensors["blk.2.ssm_conv1d.weight"], mixer.conv1d.weight[:, 0].numpy())
    assert np.array_equal(tensors["token_embd.weight"], backbone.llm.lm_head.weight.numpy())


def test_the_tokens_are_the_tokenizers_and_the_padding_is_unused(backbone, file):
    tokens, kinds = (file.get_field(f"tokenizer.ggml.{name}").contents() for name in ("tokens", "token_type"))
    vocabulary = backbone.tokenizer.get_vocab()
    assert len(tokens) == backbone.llm.config.padded_vocab_size
    assert all(tokens[number] == token for token, number in vocabulary.items())
    assert kinds[backbone.tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    assert kinds.count(gguf.TokenType.UNUSED) == len(tokens) - len(vocabulary)
    assert file.get_field("tokenizer.ggml.eos_token_id").contents() == backbone.tokenizer.eos_token_id


def test_the_chat_template_writes_the_prompt_format(backbone):
    builder = backbone.prompt_builder_fn(model_family="cobra")
    turns = [("human", "What is it?"), ("gpt", "A dog."), ("human", "Why?")]
    for role, text in turns:
        builder.add_turn(role, text)
    messages = [{"role": {"human": "user", "gpt": "assistant"}[role], "content": text} for role, text in turns]
    assert jinja2.Template(chat_template(backbone)).render(messages=messages) == builder.get_prompt()


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 2**-10), ("bf16", 2**-7)])
def test_matrices_can_be_of_half_precision(backbone, tmp_path, dtype, error):
    write_gguf(backbone, tmp_path / "half.gguf", "cobra-tiny", dtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "half.gguf").tensors}
    matrix = tensors["blk.0.ssm_in.weight"]
    values = gguf.quants.dequantize(matrix.data, matrix.tensor_type)
    expected = backbone.llm.backbone.layers[0].mixer.in_proj.weight.numpy()
    assert np.abs(values - expected).max() <= error * np.abs(expected).max()
    assert matrix.tensor_type != gguf.GGMLQuantizationType.F32
    assert tensors["blk.0.ssm_a"].tensor_type == gguf.GGMLQuantizationType.F32


def test_a_model_that_llama_cpp_cannot_run_is_refused(backbone):
    config = SimpleNamespace(mixer="Mamba9", expand=3, proj_bias=True)
    layers = [SimpleNamespace(mixer=torch.nn.Identity())]
    llm = SimpleNamespace(config=config, backbone=SimpleNamespace(layers=layers))
    with pytest.raises(UserError, match="'Mamba9' and its mixer is 3 times as wide as the model and its projections"):
        check_exportable(llm)


@pytest.mark.slow
def test_llama_cpp_answers_as_the_model(tmp_path):
    pytest.importorskip("xllamacpp")
    from cobra.export.gguf.runner import Runner

    folder = export(ExportConfig(checkpoint="cobra-tiny", output=tmp_path / "a", format="gguf", parity=24))
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["passed"] and parity["questions"] == 24
    runner = Runner(folder, threads=1)
    question = parity_questions(1)[0]
    [answer] = runner.answer([question.picture], [question.text], 24)
    vlm = cobra.load("cobra-tiny", device="cpu", dtype="fp32")
    assert answer == vlm.ask(question.picture, question.text, max_new_tokens=24)
    runner.close()
    (folder / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="llama.cpp cannot read"):
        Runner(folder)
