"""Images read once for several prompts: the same tokens and scores as reading them with each prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch import enliven, picture, scratch_vlm

from cobra.models.mamba import MambaState
from cobra.models.vlms import GenerationOptions
from cobra.models.vlms import generation_mixin as answering
from cobra.util.errors import UserError

TEXTS = ["What is it?", "A", "Which of the many things in the picture is the red one on the left?"]
OPTIONS = GenerationOptions(max_new_tokens=12, eos_token_id=-1)


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm())


@pytest.fixture(scope="module")
def pixels(vlm):
    return vlm.preprocess([picture(index) for index in range(3)])


@pytest.fixture
def prefix(vlm, pixels):
    return vlm.read_images(pixels)


def test_the_prefix_is_the_state_after_the_patches(vlm, pixels, prefix):
    patches = vlm.encode_images(pixels)
    state = MambaState.zeros(vlm.llm_backbone.llm.config, 3, "cpu")
    with torch.no_grad():
        for piece in patches.split(2, dim=1):
            vlm.llm_backbone.llm(piece, state)
    torch.testing.assert_close(prefix["ssm"], state["ssm"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prefix["conv"], state["conv"], rtol=1e-4, atol=1e-4)
    assert prefix.batch_size == 3 and not prefix["ssm"].requires_grad


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], TEXTS[:1] * 3])
def test_scores_and_state_are_those_of_a_prefill_in_one_piece(vlm, pixels, prefix, texts):
    prompts = [vlm.tokenize(text) for text in texts]
    state, scores = vlm.prefill(None, prompts, prefix)
    whole, expected = vlm.prefill(pixels, prompts)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(state["ssm"], whole["ssm"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state["conv"], whole["conv"], rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=3, max_size=3))
def test_any_prompts_get_the_same_tokens(vlm, pixels, texts):
    prompts = [vlm.tokenize(text) or [5] for text in texts]
    prefix = vlm.read_images(pixels)
    expected = vlm.generate_batch_ids(pixels, prompts, OPTIONS)
    found = vlm.generate_batch_ids(None, prompts, OPTIONS, prefix)
    for prompt, own, other in zip(prompts, found, expected, strict=True):
        assert len(own) == 12
        assert own == other or is_a_tie(vlm, pixels, prompts, prompt, own, other)


def is_a_tie(vlm, pixels, prompts, prompt, own, other):
    """Whether two answers part where the scores of two tokens are equal but for rounding."""
    row = prompts.index(prompt)
    place = next(index for index in range(12) if own[index] != other[index])
    alone = {name: value[row : row + 1] for name, value in pixels.items()}
    _, scores = vlm.prefill(alone, [prompt + own[:place]])
    return (scores[0, own[place]] - scores[0, other[place]]).abs() < 1e-3


def test_one_prefix_serves_many_prompts_and_stays_as_it_is(vlm, pixels, prefix):
    before = prefix.clone()
    for texts in (TEXTS, TEXTS[::-1]):
        expected = vlm.generate_batch(pixels, texts, max_new_tokens=12)
        assert vlm.generate_batch(None, texts, prefix=prefix, max_new_tokens=12) == expected
    assert prefix["ssm"].equal(before["ssm"]) and prefix["conv"].equal(before["conv"])


@pytest.mark.parametrize("positions", [1, 18, 20, 10_000])
def test_images_are_read_a_few_at_a_time(vlm, pixels, prefix, monkeypatch, positions):
    """Nine patches an image: one by one, in twos, and all at once."""
    monkeypatch.setattr(answering, "_CPU_POSITIONS", positions)
    again = vlm.read_images(pixels)
    torch.testing.assert_close(again["ssm"], prefix["ssm"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again["conv"], prefix["conv"], rtol=1e-4, atol=1e-4)


def test_rows_of_a_prefix_can_be_chosen_and_repeated(vlm, pixels, prefix):
    rows = torch.tensor([2, 0, 2])
    expected = vlm.generate_batch({name: value[rows] for name, value in pixels.items()}, TEXTS, max_new_tokens=12)
    assert vlm.generate_batch(None, TEXTS, prefix=prefix.select(rows), max_new_tokens=12) == expected


def test_probabilities_after_a_prefix(vlm, pixels, prefix):
    wanted = {"return_string_probabilities": ["Yes", "No"], "max_new_tokens": 2}
    texts, chances = vlm.generate_batch(None, TEXTS, prefix=prefix, **wanted)
    expected_texts, expected = vlm.generate_batch(pixels, TEXTS, **wanted)
    assert texts == expected_texts
    torch.testing.assert_close(torch.tensor(chances), torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_read_in_inference_mode_and_used_outside(vlm, pixels):
    with torch.inference_mode():
        prefix = vlm.read_images(pixels)
    assert vlm.generate_batch(None, TEXTS, prefix=prefix, max_new_tokens=4) == vlm.generate_batch(
        pixels, TEXTS, max_new_tokens=4
    )


def test_a_prefix_of_other_rows(vlm, prefix):
    with pytest.raises(UserError, match="prefix is of 3 images and there are 2 prompts"):
        vlm.generate_batch(None, TEXTS[:2], prefix=prefix)


def test_a_prefix_of_another_model(vlm, prefix):
    other = MambaState({name: part[:-1] for name, part in prefix.parts.items()})
    with pytest.raises(UserError, match="the state is of another model: .* but this model has conv .4,"):
        vlm.generate_batch(None, TEXTS, prefix=other)


def test_a_prefix_on_another_device(vlm, prefix):
    with pytest.raises(UserError, match="prefix is on meta and the model on cpu"):
        vlm.generate_batch(None, TEXTS, prefix=MambaState.zeros(vlm.llm_backbone.llm.config, len(TEXTS), "meta"))


def test_pixels_beside_a_prefix(vlm, pixels, prefix):
    with pytest.raises(UserError, match="a prefix and pixels were given"):
        vlm.generate_batch(pixels, TEXTS, prefix=prefix)


def test_an_empty_prompt_after_a_prefix(vlm, prefix):
    with pytest.raises(UserError, match="prompt 1 is empty"):
        vlm.generate_batch(None, ["A", "", "B"], prefix=prefix)
