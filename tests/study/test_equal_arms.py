"""Arms of equal rows, tokens or operations: the steps that each takes, from counts made here in another way."""

import pytest

from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import ZephyrChatPromptBuilder
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.study import matching
from cobra.study.matching import measure_costs, open_arms, steps_of
from cobra.util.errors import UserError

ARMS = ("full", "conclusion", "shuffled")


def lengths(conversations):
    """Tokens of every row as it is trained: the whole prompt at once."""
    tokenizer = load_tokenizer(TINY_FOLDER, 512)
    sizes = []
    for index in range(len(conversations.rows)):
        builder = ZephyrChatPromptBuilder("cobra")
        for turn in conversations[index]:
            builder.add_turn(turn["from"], turn["value"])
        sizes.append(len(tokenizer(builder.get_prompt()).input_ids))
    return sizes


def test_equal_rows_leave_the_steps_to_the_flags(config):
    assert steps_of(config, open_arms(config)) == dict.fromkeys(ARMS)


def test_equal_tokens_give_shorter_answers_more_steps(change):
    config = change(match="tokens", finetune_max_steps=100)
    arms = open_arms(config)
    steps, costs = steps_of(config, arms), measure_costs(config, arms)
    for arm, conversations in arms.items():
        sizes = lengths(conversations)
        # Turns are counted one by one, and tokens may join where they meet.
        assert costs[arm].tokens == pytest.approx(sum(sizes) / len(sizes), abs=1)
        assert costs[arm].images == 1
    assert min(steps.values()) == 100 and steps["conclusion"] > 250
    tokens = {arm: steps[arm] * costs[arm].tokens for arm in ARMS}
    assert max(tokens.values()) / min(tokens.values()) < 1.01


def test_equal_flops_count_the_image_and_the_head_too(change):
    config = change(match="flops", finetune_max_steps=100)
    arms = open_arms(config)
    steps = steps_of(config, arms)
    model = matching.build_meta_model(config.model, config.stage, config.lora)
    work = {arm: steps[arm] * matching._flops(model, cost) for arm, cost in measure_costs(config, arms).items()}
    assert max(work.values()) / min(work.values()) < 1.01
    # The image costs all arms the same, so fewer steps make up for a short answer than equal tokens ask for.
    assert 100 < steps["conclusion"] < steps_of(change(match="tokens", finetune_max_steps=100), arms)["conclusion"]


def test_epochs_count_as_steps(change):
    config = change(match="tokens", finetune_max_steps=None, finetune_epochs=2)
    assert min(steps_of(config, open_arms(config)).values()) == 2 * 6


def test_tokens_cannot_be_counted_without_the_tokenizer(change, monkeypatch):
    monkeypatch.setattr(matching, "cached_tokenizer", lambda model: None)
    config = change(match="tokens")
    with pytest.raises(UserError, match="--match tokens counts tokens.*fetch"):
        steps_of(config, open_arms(config))
