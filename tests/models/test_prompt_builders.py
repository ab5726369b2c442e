"""Prompt builders: turns, their order, and what a prompt is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.models.backbones.llm.prompting import (
    MambaPromptBuilder,
    PromptBuilder,
    PurePromptBuilder,
    ZephyrChatPromptBuilder,
)
from cobra.util.errors import UserError

BUILDERS = [ZephyrChatPromptBuilder, MambaPromptBuilder, PurePromptBuilder]
ENDS = {ZephyrChatPromptBuilder: "<|endoftext|>", MambaPromptBuilder: "<|endoftext|>", PurePromptBuilder: "</s>"}


def test_the_base_class_has_no_format_of_its_own():
    with pytest.raises(TypeError):
        PromptBuilder("cobra")


def test_zephyr_conversation_in_full():
    builder = ZephyrChatPromptBuilder("cobra")
    assert builder.add_turn("human", "<image>\nWhat is it?") == ("<|user|>\nWhat is it?<|endoftext|>\n<|assistant|>\n")
    assert builder.add_turn("gpt", " A cat. ") == "A cat.<|endoftext|>"
    assert builder.add_turn("human", "Sure?") == "\n<|user|>\nSure?<|endoftext|>\n<|assistant|>\n"


@pytest.mark.parametrize("builder_class", BUILDERS)
@pytest.mark.parametrize(
    ("turns", "found", "expected"),
    [
        (["gpt"], "'gpt'", "'human'"),
        (["human", "human"], "'human'", "'gpt'"),
        (["human", "gpt", "gpt"], "'gpt'", "'human'"),
        (["system"], "'system'", "'human'"),
    ],
)
def test_wrong_role_names_what_was_found_and_expected(builder_class, turns, found, expected):
    builder = builder_class("cobra")
    for role in turns[:-1]:
        builder.add_turn(role, "text")
    before = builder.get_prompt()
    with pytest.raises(UserError, match=f"turn {len(turns)} .*{found}.*expected {expected}"):
        builder.add_turn(turns[-1], "text")
    assert builder.get_prompt() == before
    assert builder.turn_count == len(turns) - 1


@pytest.mark.parametrize("builder_class", BUILDERS)
@pytest.mark.parametrize("reply", ["", " \n ", "<image>", " <image>\n"])
def test_an_empty_reply_is_a_blank(builder_class, reply):
    builder = builder_class("cobra")
    builder.add_turn("human", "What?")
    assert builder.add_turn("gpt", reply) == f" {ENDS[builder_class]}"


@pytest.mark.parametrize("builder_class", BUILDERS)
def test_a_potential_prompt_changes_nothing(builder_class):
    builder = builder_class("cobra")
    builder.add_turn("human", "What?")
    builder.add_turn("gpt", "A cat.")
    before = (builder.get_prompt(), builder.turn_count)
    assert builder.get_potential_prompt("Which one?").startswith(before[0])
    assert "Which one?" in builder.get_potential_prompt("Which one?")
    assert (builder.get_prompt(), builder.turn_count) == before


def test_model_family_and_system_prompt_are_kept():
    builder = MambaPromptBuilder("cobra", system_prompt="You are helpful.")
    builder.add_turn("human", "What?")
    assert (builder.model_family, builder.system_prompt) == ("cobra", "You are helpful.")
    assert "helpful" not in builder.get_prompt()


@pytest.mark.parametrize("builder_class", BUILDERS)
@given(messages=st.lists(st.text(max_size=30), max_size=6))
def test_the_turns_joined_are_the_prompt(builder_class, messages):
    builder = builder_class("cobra")
    turns = [builder.add_turn(("human", "gpt")[place % 2], message) for place, message in enumerate(messages)]
    # The pure format alone drops the blank after an open `Out:`.
    joined = "".join(turns)
    assert builder.get_prompt() == (joined.rstrip() if builder_class is PurePromptBuilder else joined)
    for place, (message, turn) in enumerate(zip(messages, turns, strict=True)):
        assert message.replace("<image>", "").strip() in turn
        assert turn.endswith(ENDS[builder_class]) == (place % 2 == 1)
