"""Rows, collated batches, prompts, tokenizer and sampler against outputs of the original Cobra."""

import pytest
import torch
from golden_set import by_tower

from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import MambaPromptBuilder, PurePromptBuilder, ZephyrChatPromptBuilder
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import UserError

BUILDERS = {"zephyr": ZephyrChatPromptBuilder, "mamba": MambaPromptBuilder, "pure": PurePromptBuilder}


def test_golden_prompts(golden, golden_prompts):
    """Cobra asserts on a role out of turn (prompts.json, wrong_role); ours says what was expected."""
    expected = golden.json("prompts.json")[golden_prompts]
    builder = BUILDERS[golden_prompts]("cobra", expected["system_prompt_attr"])
    assert builder.system_prompt == expected["system_prompt_attr"]
    assert expected["steps"]
    for step in expected["steps"]:
        if step["potential_prompt_before"] is not None:
            assert builder.get_potential_prompt(step["message"]) == step["potential_prompt_before"]
        assert builder.add_turn(step["role"], step["message"]) == step["wrapped"]
        assert builder.get_prompt() == step["prompt_after"]
    with pytest.raises(UserError, match="expected"):
        builder.add_turn("human" if builder.turn_count % 2 else "gpt", "out of turn")


def test_golden_tokenizer(golden):
    """All but `cls`: ours reads tokenizer.json with the plain class, whose ids are the same."""
    facts = golden.json("tokenizer_facts.json")
    tokenizer = load_tokenizer(golden.path("hf_llm"), facts["model_max_length"])
    assert len(tokenizer) == facts["len"]
    assert tokenizer.vocab_size == facts["vocab_size"]
    assert tokenizer.model_max_length == facts["model_max_length"]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (facts["padding_side"], facts["truncation_side"])
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(tokenizer, f"{name}_token_id") == facts[name]
    assert facts["encode"]
    for text, (with_special, without_special) in facts["encode"].items():
        assert tokenizer(text, add_special_tokens=True).input_ids == with_special
        assert tokenizer(text, add_special_tokens=False).input_ids == without_special


def test_golden_finetune_rows(golden, golden_data):
    expected = golden.json("finetune_dataset.json")
    dataset = golden_data.finetune
    assert len(dataset) == len(expected["rows"])
    assert dataset.tokenizer.model_max_length == expected["model_max_length"]
    assert [list(pair) for pair in dataset.get_modality_lengths()] == expected["modality_lengths"]
    for index, row in enumerate(expected["rows"]):
        example = dataset[index]
        assert dataset.examples[index]["id"] == row["id"]
        assert example["input_ids"].tolist() == row["input_ids"], row["id"]
        assert example["labels"].tolist() == row["labels"], row["id"]
        assert (example["pixel_values"] is not None) == row["has_pixels"], row["id"]


def test_golden_finetune_prompts_and_their_whole_lengths(golden, golden_data):
    dataset = golden_data.finetune
    dataset.tokenizer.model_max_length = 10**9
    for index, row in enumerate(golden.json("finetune_dataset.json")["rows"]):
        builder = dataset.prompt_builder_fn(model_family="cobra")
        for turn in dataset.examples[index]["conversations"]:
            builder.add_turn(turn["from"], turn["value"])
        assert builder.get_prompt() == row["prompt"], row["id"]
        assert len(dataset[index]["input_ids"]) == row["untruncated_len"], row["id"]


def test_golden_align_rows(golden, golden_data):
    expected = golden.json("align_dataset.json")
    assert len(golden_data.align) == len(expected["rows"])
    lengths = golden_data.align.get_modality_lengths(expected["n_image_patches"])
    assert [list(pair) for pair in lengths] == expected["modality_lengths_npatches"]
    for index, row in enumerate(expected["rows"]):
        example = golden_data.align[index]
        assert golden_data.align.examples[index]["id"] == row["id"]
        assert example["input_ids"].tolist() == row["input_ids"], row["id"]
        assert example["labels"].tolist() == row["labels"], row["id"]


@pytest.mark.parametrize("kind", ["mixed", "multimodal", "text_only"])
def test_golden_collated_batches(golden, golden_data, kind):
    expected = golden.json(f"collator_{kind}.json")
    batch = golden_data.collator([golden_data.finetune[index] for index in expected["dataset_indices"]])
    for key in ("input_ids", "labels", "attention_mask", "multimodal_indices"):
        assert batch[key].tolist() == expected[key], key
    assert str(batch["attention_mask"].dtype) == expected["attention_mask_dtype"]
    pixels = expected["pixel_values"]
    references = {"": pixels} if "shape" in pixels else pixels
    actual = by_tower(batch["pixel_values"])
    assert actual.keys() == references.keys()
    for name, reference in references.items():
        assert list(actual[name].shape) == reference["shape"]
        sums = actual[name].double().flatten(1).sum(1)
        # The transforms agree to 1e-5 a pixel.
        torch.testing.assert_close(
            sums, torch.tensor(reference["row_sums"], dtype=torch.double), rtol=0, atol=1e-5 * actual[name][0].numel()
        )


def test_golden_sampler(golden):
    expected = golden.json("sampler.json")
    assert {case["case"] for case in expected["cases"]} == expected["modality_lengths"].keys()
    for case in expected["cases"]:
        lengths = expected["modality_lengths"][case["case"]]
        assert len(case["per_rank_indices"]) == case["world_size"]
        for rank, indices in enumerate(case["per_rank_indices"]):
            sampler = SplitModalitySampler(
                None, lengths, case["global_batch_size"], case["world_size"], rank, case["seed"]
            )
            sampler.set_epoch(case["epoch"])
            assert list(sampler) == indices, case
            assert len(sampler) == case["len_reported"]


def text_only():
    sampler = SplitModalitySampler(None, [(False, 3 + index) for index in range(10)], 4, 1, 0)
    assert sorted(set(sampler)) == list(range(10))


def few_images():
    sampler = SplitModalitySampler(None, [(index == 0, 5) for index in range(9)], 8, 2, 0)
    assert sampler.global_batches(0).count([0] * 8) == 1


EDGES = {"text only": text_only, "fewer multimodal than half the batch": few_images}


def test_golden_sampler_edges_where_cobra_crashes(golden):
    """Cobra raises on text-only data and on fewer images than half a batch; ours trains."""
    edges = golden.json("sampler.json")["edge"]
    assert edges
    for name in edges:
        EDGES[name]()
