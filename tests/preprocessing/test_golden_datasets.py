"""Rows, collated batches, prompts, tokenizer and sampler against outputs of the original Cobra."""

import pytest
import torch

from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import MambaPromptBuilder, PurePromptBuilder, ZephyrChatPromptBuilder
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.errors import UserError

BUILDERS = {"zephyr": ZephyrChatPromptBuilder, "mamba": MambaPromptBuilder, "pure": PurePromptBuilder}


@pytest.mark.parametrize("name", BUILDERS)
def test_golden_prompts(golden, name):
    expected = golden.json("prompts.json")[name]
    builder = BUILDERS[name]("cobra", expected["system_prompt_attr"])
    for step in expected["steps"]:
        if step["potential_prompt_before"] is not None:
            assert builder.get_potential_prompt(step["message"]) == step["potential_prompt_before"]
        assert builder.add_turn(step["role"], step["message"]) == step["wrapped"]
        assert builder.get_prompt() == step["prompt_after"]
    with pytest.raises(UserError, match="expected"):
        builder.add_turn("human" if builder.turn_count % 2 else "gpt", "out of turn")


def test_golden_tokenizer(golden):
    facts = golden.json("tokenizer_facts.json")
    tokenizer = load_tokenizer(golden.path("hf_llm"), facts["model_max_length"])
    assert len(tokenizer) == facts["len"]
    assert tokenizer.vocab_size == facts["vocab_size"]
    assert tokenizer.model_max_length == facts["model_max_length"]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (facts["padding_side"], facts["truncation_side"])
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(tokenizer, f"{name}_token_id") == facts[name]
    for text, (with_special, without_special) in facts["encode"].items():
        assert tokenizer(text, add_special_tokens=True).input_ids == with_special
        assert tokenizer(text, add_special_tokens=False).input_ids == without_special


def test_golden_finetune_rows(golden, golden_data):
    expected = golden.json("finetune_dataset.json")
    dataset = golden_data.finetune
    assert len(dataset) == len(expected["rows"])
    assert [list(pair) for pair in dataset.get_modality_lengths()] == expected["modality_lengths"]
    for index, row in enumerate(expected["rows"]):
        example = dataset[index]
        assert dataset.examples[index]["id"] == row["id"]
        assert example["input_ids"].tolist() == row["input_ids"], row["id"]
        assert example["labels"].tolist() == row["labels"], row["id"]
        assert (example["pixel_values"] is not None) == row["has_pixels"], row["id"]


def test_golden_align_rows(golden, golden_data):
    expected = golden.json("align_dataset.json")
    lengths = golden_data.align.get_modality_lengths(expected["n_image_patches"])
    assert [list(pair) for pair in lengths] == expected["modality_lengths_npatches"]
    for index, row in enumerate(expected["rows"]):
        example = golden_data.align[index]
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
    pairs = [(batch["pixel_values"], pixels)]
    if "shape" not in pixels:
        pairs = [(batch["pixel_values"][name], pixels[name]) for name in pixels]
    for actual, reference in pairs:
        assert list(actual.shape) == reference["shape"]
        sums = actual.double().flatten(1).sum(1)
        # The transforms agree to 1e-5 a pixel.
        torch.testing.assert_close(
            sums, torch.tensor(reference["row_sums"], dtype=torch.double), rtol=0, atol=1e-5 * actual[0].numel()
        )


def test_golden_sampler(golden):
    expected = golden.json("sampler.json")
    for case in expected["cases"]:
        lengths = expected["modality_lengths"][case["case"]]
        for rank, indices in enumerate(case["per_rank_indices"]):
            sampler = SplitModalitySampler(
                None, lengths, case["global_batch_size"], case["world_size"], rank, case["seed"]
            )
            sampler.set_epoch(case["epoch"])
            assert list(sampler) == indices, case
            assert len(sampler) == case["len_reported"]


def test_golden_sampler_edges_where_cobra_crashes(golden):
    """Cobra raises on text-only data and on fewer images than half a batch (sampler.json, edge); ours trains."""
    assert set(golden.json("sampler.json")["edge"]) == {"text only", "fewer multimodal than half the batch"}
    text_only = SplitModalitySampler(None, [(False, 3 + index) for index in range(10)], 4, 1, 0)
    assert sorted(set(text_only)) == list(range(10))
    few_images = SplitModalitySampler(None, [(index == 0, 5) for index in range(9)], 8, 2, 0)
    assert few_images.global_batches(0).count([0] * 8) == 1
