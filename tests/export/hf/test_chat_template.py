"""Chat templates write what the prompt builders write, with the image first."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cobra.export.hf.chat_template import chat_template
from cobra.models.backbones.llm.prompting import MambaPromptBuilder, PurePromptBuilder, ZephyrChatPromptBuilder
from cobra.util.conversation import without_special_tokens
from cobra.util.errors import UserError

BUILDERS = [ZephyrChatPromptBuilder, MambaPromptBuilder]
CONVERSATIONS = [
    ["What is it?"],
    ["  What\nis it? ", "A dog. ", "Which?", "", "And now?"],
    ["a \t<|endoftext|> b <|padding|>", "c<|endoftext|>", " d "],
    ["What is it?", "A dog."],
]


def render(builder, turns, images=0, generate=True):
    first = [*[{"type": "image"}] * images, part(turns[0])]
    messages = [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate([first, *turns[1:]])
    ]
    options = {"add_generation_prompt": generate}
    return render_jinja_template([messages], chat_template=chat_template(builder), **options)[0][0]


def part(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_the_prompt_is_the_builders(builder, turns):
    expected = builder("cobra")
    for place, text in enumerate(turns):
        expected.add_turn(("human", "gpt")[place % 2], without_special_tokens(text))
    assert render(builder, turns) == expected.get_prompt()
    assert render(builder, turns, images=1) == "<image>" + expected.get_prompt()


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_prompt_begins_the_conversation_that_it_is_of(builder):
    whole = render(builder, ["What?", "A dog."], 1, generate=False)
    assert whole.startswith(render(builder, ["What?"], 1))
    assert render(builder, ["What?"], 1).startswith(render(builder, ["What?"], 1, generate=False))


def test_a_placeholder_in_a_text_moves_to_the_front():
    assert render(ZephyrChatPromptBuilder, ["Look at\n<image>"]).startswith("<image><|user|>\nLook at<|endoftext|>")
    assert "<|endoftext|>\n<|endoftext|>" not in render(ZephyrChatPromptBuilder, ["a", "<|endof<image>text|>"])


def test_other_roles_contents_and_formats_are_refused():
    template = chat_template(ZephyrChatPromptBuilder)
    for messages, message in (
        ([{"role": "system", "content": "x"}], "no system prompt"),
        ([{"role": "user", "content": "x"}] * 2, "Turns must alternate"),
        ([{"role": "user", "content": [{"type": "video"}]}], "not video"),
    ):
        with pytest.raises(Exception, match=message):
            render_jinja_template([messages], chat_template=template)
    with pytest.raises(UserError, match="PurePromptBuilder has no chat template"):
        chat_template(PurePromptBuilder)
