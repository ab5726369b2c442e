"""Language models from local folders: configuration, weights, tokenizer, prompt format, and what may be wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from cobra.models import get_llm_backbone_and_tokenizer
from cobra.models.backbones.llm import LLMSpec, build_llm_backbone, register_llm_backbone
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import MambaPromptBuilder, ZephyrChatPromptBuilder
from cobra.models.backbones.llm.specs import LLM_BACKBONES, TINY_FOLDER
from cobra.models.mamba import MambaConfig, MambaLM
from cobra.models.vlms.generation_mixin import single_token_answers
from cobra.util.errors import UserError

CONFIG = {"d_model": 16, "n_layer": 1, "vocab_size": 768, "ssm_cfg": {"d_state": 4}}


@pytest.fixture
def folder(tmp_path):
    """A folder as a hub repository is: configuration, weights, tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_FOLDER / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path


def weights():
    values = MambaLM(MambaConfig.from_dict(CONFIG)).state_dict()
    del values["lm_head.weight"]
    return values


def build(folder, identifier="mamba-test-zephyr", load_weights=True, **options):
    return build_llm_backbone(identifier, LLMSpec(folder, **options), 32, None, load_weights)


def test_a_local_folder(folder):
    backbone = build(folder)
    state = backbone.state_dict()
    torch.manual_seed(0)
    for name, value in weights().items():
        assert torch.equal(state[f"llm.{name}"], value), name
    assert backbone.embed_dim == 16
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.get_vocab()["<|padding|>"]


def test_torch_files_are_read_where_there_are_no_safetensors(folder):
    torch.manual_seed(0)
    expected = weights()
    torch.save(expected, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(build(folder).llm.backbone.norm_f.weight, expected["backbone.norm_f.weight"])


def test_random_values_need_no_weights(folder):
    (folder / "model.safetensors").unlink()
    build(folder, pretrained=False)
    build(folder, load_weights=False)
    with pytest.raises(UserError, match="has no model.safetensors or pytorch_model.bin"):
        build(folder)


def test_weights_of_another_size(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"d_model": 24}))
    with pytest.raises(UserError, match=r"language model in .*of another shape: .*\(768, 16\) instead of \(768, 24\)"):
        build(folder)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ([], "not a Mamba config"),
        ({}, "found nothing"),
        ({"hidden_size": 4, "model_type": "llama"}, "found hidden_size, model_type"),
        (CONFIG | {"ssm_cfg": {"layer": "Mamba2"}}, "mixer 'Mamba2' is unknown; the known ones are: Mamba1"),
        (CONFIG | {"attn_layer_idx": [3]}, "a hybrid"),
        (CONFIG | {"rms_norm": False}, "RMS norms"),
        ({"d_model": 16, "n_layer": 1}, "has no 'vocab_size'"),
        (CONFIG | {"d_model": "16"}, "d_model is '16', expected a whole number above 0"),
        (CONFIG | {"n_layer": 0}, "n_layer is 0"),
        (CONFIG | {"n_layer": True}, "n_layer is True"),
        (CONFIG | {"vocab_size": None}, "vocab_size is None"),
        (CONFIG | {"ssm_cfg": {"d_state": 2.5}}, "d_state is 2.5"),
        (CONFIG | {"ssm_cfg": {"dt_rank": "many"}}, "dt_rank is 'many'"),
        (CONFIG | {"ssm_cfg": {"dt_min": 0.0}}, "dt_min is 0.0, expected a number above 0"),
        (CONFIG | {"norm_epsilon": "1e-5"}, "norm_epsilon is '1e-5'"),
        (CONFIG | {"ssm_cfg": [1, 2]}, "not a Mamba config"),
    ],
)
def test_bad_configurations(folder, config, expected):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=expected) as error:
        build(folder)
    assert str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_without_a_file_names_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder} has no {name}"):
        build(folder)


@pytest.mark.parametrize("content", ["", "{}", "not JSON"])
def test_a_tokenizer_that_is_none(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer .* cannot be loaded"):
        build(folder)


def test_a_tokenizer_without_an_end_token(folder):
    values = json.loads((folder / "tokenizer_config.json").read_text())
    del values["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="has no end token"):
        build(folder)


def test_a_tokenizer_with_more_tokens_than_the_model(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 760}))
    with pytest.raises(UserError, match="768 tokens and the language model 760"):
        build(folder, pretrained=False)


def test_the_tokenizer_cuts_and_pads_on_the_right(folder):
    tokenizer = load_tokenizer(folder, 8)
    assert (tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side) == (8, "right", "right")
    long = tokenizer("one two three four five six seven eight nine", truncation=False, verbose=False).input_ids
    assert len(long) > 8
    assert tokenizer("one two three four five six seven eight nine", truncation=True).input_ids == long[:8]
    # No token of its own at the beginning or the end.
    assert tokenizer.decode(tokenizer("a b").input_ids) == "a b"


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(folder):
    values = json.loads((folder / "tokenizer_config.json").read_text())
    del values["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    assert load_tokenizer(folder, 8).pad_token == "<|padding|>"
    core = json.loads((folder / "tokenizer.json").read_text().replace("<|padding|>", "<|nothing|>"))
    (folder / "tokenizer.json").write_text(json.dumps(core))
    assert load_tokenizer(folder, 8).pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("mamba-2.8b-zephyr", ZephyrChatPromptBuilder),
        ("my-zephyr", ZephyrChatPromptBuilder),
        ("mamba-2.8b", MambaPromptBuilder),
    ],
)
def test_the_id_decides_the_prompt_format(folder, identifier, expected):
    assert build(folder, identifier, load_weights=False).prompt_builder_fn is expected


def test_an_id_without_a_prompt_format(folder):
    with pytest.raises(UserError, match="'falcon'.*end in 'zephyr' or start with 'mamba'"):
        _ = build(folder, "falcon", load_weights=False).prompt_builder_fn


def test_registration_and_the_factory(folder):
    register_llm_backbone("mamba-test", LLMSpec(folder))
    try:
        backbone, tokenizer = get_llm_backbone_and_tokenizer("mamba-test", 17)
        assert tokenizer is backbone.tokenizer
        assert tokenizer.model_max_length == 17
    finally:
        del LLM_BACKBONES["mamba-test"]
    with pytest.raises(UserError, match=r"'mamba-test' is unknown.*mamba-2.8b-zephyr"):
        get_llm_backbone_and_tokenizer("mamba-test")


def test_single_token_answers_of_the_packaged_tokenizer():
    tokenizer = load_tokenizer(TINY_FOLDER, 8)
    answers = single_token_answers(tokenizer)
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") | {"True", "False", "Yes", "No"} == set(answers)
    assert all(tokenizer.decode([token]) == answer for answer, token in answers.items())
