"""Generation on a small lively model: batches, limits, choices, pieces, probabilities, and bad arguments."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scratch import enliven, picture, scratch_vlm

from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.generation.generate import stops_after
from cobra.models.generation.sampling import choose, keep_top_k, keep_top_p, penalise_repetition
from cobra.models.vlms import CobraVLM, GenerationOptions, SearchOptions
from cobra.util.errors import UserError

# No token has this id: nothing stops an answer but its limit.
NEVER = -1
TEXTS = [
    "<|user|>\nWhat is it?<|endoftext|>\n<|assistant|>\n",
    "A",
    "In: Which of the many things in the picture is the one on the left of the red one?\nOut:",
    "a red circle",
]


@pytest.fixture(scope="module")
def vlm() -> CobraVLM:
    return enliven(scratch_vlm())


@pytest.fixture(scope="module")
def pixels(vlm):
    return vlm.preprocess([picture(index) for index in range(len(TEXTS))])


@pytest.fixture(scope="module")
def decode():
    """From ids to text; not a method of the model, which a failure would print whole."""
    return load_tokenizer(TINY_FOLDER, 512).decode


def row(pixels, index):
    return None if pixels is None else {name: value[index : index + 1] for name, value in pixels.items()}


def ids_of(vlm, pixels, texts=TEXTS, **options):
    options = {"max_new_tokens": 12, "eos_token_id": NEVER} | options
    return vlm.generate_batch_ids(pixels, [vlm.tokenize(text) for text in texts], GenerationOptions(**options))


@pytest.fixture
def batch_sizes(vlm, monkeypatch):
    """The number of rows in every pass through the language model."""
    llm, sizes = vlm.llm_backbone.llm, []
    forward = llm.forward

    def recorded(inputs_embeds, *arguments, **options):
        sizes.append(len(inputs_embeds))
        return forward(inputs_embeds, *arguments, **options)

    monkeypatch.setattr(llm, "forward", recorded)
    return sizes


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}])
def test_a_ragged_batch_equals_one_by_one(vlm, pixels, with_images, options):
    pixels = pixels if with_images else None
    together = ids_of(vlm, pixels, **options)
    alone = [ids_of(vlm, row(pixels, index), [text], **options)[0] for index, text in enumerate(TEXTS)]
    assert together == alone
    assert [len(ids) for ids in together] == [12] * len(TEXTS)
    # The model is lively enough for the comparison to mean something.
    assert all(len(set(ids)) > 6 for ids in together)


def test_rows_keep_their_own_penalties_when_others_leave(vlm, pixels):
    options = {"repetition_penalty": 1e9, "max_new_tokens": None, "max_length": 40}
    together = ids_of(vlm, pixels, **options)
    assert len({len(ids) for ids in together}) == 4
    assert together == [ids_of(vlm, row(pixels, index), [text], **options)[0] for index, text in enumerate(TEXTS)]


def test_images_matter(vlm, pixels):
    with_image, without = ids_of(vlm, pixels), ids_of(vlm, None)
    swapped = ids_of(vlm, {name: value.flip(0) for name, value in pixels.items()})
    # A long text may have the last word.
    assert sum(one != two for one, two in zip(with_image, without, strict=True)) >= 2
    assert sum(one != two for one, two in zip(with_image, swapped, strict=True)) >= 2


def test_cached_steps_equal_reading_everything_again(vlm, pixels):
    prompt = vlm.tokenize(TEXTS[0])
    new = ids_of(vlm, row(pixels, 0), TEXTS[:1])[0]
    for step, token in enumerate(new):
        _, scores = vlm.prefill(row(pixels, 0), [prompt + new[:step]])
        assert scores.argmax().item() == token


def test_first_scores_are_the_logits_of_a_forward_pass(vlm, pixels):
    prompts = [vlm.tokenize(text) for text in TEXTS]
    _, scores = vlm.prefill(pixels, prompts)
    for index, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = vlm(input_ids=torch.tensor([prompt]), pixel_values=row(pixels, index)).logits
        torch.testing.assert_close(scores[index], logits[0, -1], rtol=1e-4, atol=1e-3)


def test_rows_that_are_done_leave_the_batch(vlm, pixels, batch_sizes):
    free = ids_of(vlm, pixels)
    # A token that one row says early, and no other row before its end.
    stop = next(
        token
        for token in free[1][2:6]
        if token not in free[1][:2] and all(token not in ids for ids in free[:1] + free[2:])
    )
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
    batch_sizes.clear()
    assert ids_of(vlm, pixels, eos_token_id=stop) == expected
    early = len(expected[1])
    assert early < 12
    # The prompts, then a pass for every further token of the rows that go on.
    assert batch_sizes == [4] + [4] * (early - 1) + [3] * (12 - early)


def test_the_stop_token_is_kept_in_ids_and_not_in_text(vlm, pixels, monkeypatch):
    free = ids_of(vlm, row(pixels, 0), TEXTS[:1])[0]
    tokenizer = vlm.llm_backbone.tokenizer
    assert ids_of(vlm, row(pixels, 0), TEXTS[:1], eos_token_id=free[3])[0] == free[:4]
    monkeypatch.setattr("cobra.models.vlms.generation_mixin.generate_ids", lambda *_: iter([[(0, i)] for i in [34, 0]]))
    assert tokenizer.eos_token_id == 0
    assert vlm.generate_batch_ids(None, [[5]], GenerationOptions()) == [[34, 0]]
    assert vlm.generate_batch(None, ["A"]) == [tokenizer.decode([34])]


def test_the_tokenizers_end_token_is_the_default(vlm, monkeypatch):
    ends = []

    def record(llm, state, scores, prompts, options, end, stop):
        ends.append(end)
        return iter([])

    monkeypatch.setattr("cobra.models.vlms.generation_mixin.generate_ids", record)
    vlm.generate_batch(None, ["A"])
    vlm.generate_batch(None, ["A"], eos_token_id=7)
    assert ends == [vlm.llm_backbone.tokenizer.eos_token_id, 7]


def test_a_text_ends_its_row_alone(vlm, pixels, batch_sizes):
    free = ids_of(vlm, pixels)
    texts = [vlm.decode(ids) for ids in free]
    # A text of several tokens that one row says before its end, and no other row.
    stop = next(
        text
        for begin in range(1, 6)
        for end in range(begin + 2, 10)
        if (text := vlm.decode(free[2][begin:end])).isascii() and sum(text in other for other in texts) == 1
    )
    said = next(count for count in range(1, 13) if stop in vlm.decode(free[2][:count]))
    assert 2 < said < 12 and free[2][said - 1] not in free[2][said:]
    batch_sizes.clear()
    assert ids_of(vlm, pixels, stop_strings=["never said", stop]) == [*free[:2], free[2][:said], free[3]]
    assert batch_sizes == [4] + [4] * (said - 1) + [3] * (12 - said)
    pieces = list(vlm.stream(picture(2), TEXTS[2], max_new_tokens=12, eos_token_id=NEVER, stop_strings=[stop]))
    assert "".join(pieces) == vlm.decode(free[2][:said])


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(2, 767), min_size=1, max_size=30), data=st.data())
def test_a_text_is_seen_with_its_last_token(decode, ids, data):
    whole = decode(ids)
    begin = data.draw(st.integers(0, len(whole) - 1))
    text = whole[begin : data.draw(st.integers(begin + 1, begin + 8))]
    assume("\ufffd" not in text)
    stop = stops_after([text], decode, 1)
    seen = [stop(0, token) for token in ids]
    first = next(count for count in range(1, len(ids) + 1) if text in decode(ids[:count]))
    assert seen.index(True) == first - 1


def test_a_list_of_texts_is_wanted():
    with pytest.raises(UserError, match="^stop_strings is '</s>' and must be a list of texts$"):
        GenerationOptions(stop_strings="</s>")


def test_limits(vlm, pixels):
    free = ids_of(vlm, pixels)
    lengths = [len(vlm.tokenize(text)) for text in TEXTS]
    assert ids_of(vlm, pixels, max_new_tokens=1) == [ids[:1] for ids in free]
    # Prompt and answer together, the patches not counted.
    assert min(lengths) < 9 < max(lengths)
    limited = ids_of(vlm, pixels, max_new_tokens=None, max_length=9)
    assert limited == [ids[: max(9 - length, 0)] for ids, length in zip(free, lengths, strict=True)]
    assert [] in limited
    both = ids_of(vlm, pixels, max_new_tokens=3, max_length=9)
    assert both == [ids[:3] for ids in limited]
    assert ids_of(vlm, pixels, max_new_tokens=None, max_length=1) == [[]] * 4


def test_the_default_limit_is_512(vlm):
    assert GenerationOptions().budget(100) == 512
    assert GenerationOptions(max_length=600).budget(100) == 500
    assert len(ids_of(vlm, None, TEXTS[1:2], max_new_tokens=None)[0]) == 512


def test_a_heavy_repetition_penalty_forbids_repeating(vlm, pixels):
    prompts = [vlm.tokenize(text) for text in TEXTS]
    for prompt, ids in zip(prompts, ids_of(vlm, pixels, repetition_penalty=1e9), strict=True):
        assert len(set(ids)) == len(ids)
        assert not set(ids) & set(prompt)


def test_repetition_penalty_by_hand():
    scores = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise_repetition(scores, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0]]


def sampled(vlm, pixels, seed, **options):
    defaults = {"generator": torch.Generator().manual_seed(seed), "temperature": 5.0}
    return ids_of(vlm, pixels, do_sample=True, **defaults | options)


def test_sampling_samples_and_a_generator_fixes_it(vlm, pixels):
    """Cobra's do_sample is greedy, because its top_k is 1 unless said otherwise."""
    greedy = ids_of(vlm, pixels)
    first = sampled(vlm, pixels, 1)
    torch.manual_seed(9)
    assert sampled(vlm, pixels, 1) == first
    assert sampled(vlm, pixels, 2) != first
    assert first != greedy
    torch.manual_seed(9)
    unseeded = sampled(vlm, pixels, 1, generator=None)
    torch.manual_seed(9)
    assert sampled(vlm, pixels, 1, generator=None) == unseeded


def test_greedy_ignores_what_is_for_sampling(vlm, pixels):
    assert ids_of(vlm, pixels, temperature=9.0, top_k=3, top_p=0.2) == ids_of(vlm, pixels)


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}])
def test_sampling_at_its_limits_is_greedy(vlm, pixels, options):
    assert sampled(vlm, pixels, 3, **options) == ids_of(vlm, pixels)


PROBABILITIES = torch.tensor([0.05, 0.4, 0.3, 0.25])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.05, 0.4, 0.3, 0.25]),
        ({"temperature": 0.5}, [0.05**2 / 0.315, 0.16 / 0.315, 0.09 / 0.315, 0.0625 / 0.315]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_p": 0.65}, [0, 4 / 7, 3 / 7, 0]),
        ({"top_p": 0.75}, [0, 0.4 / 0.95, 0.3 / 0.95, 0.25 / 0.95]),
        ({"top_k": 3, "top_p": 0.7}, [0, 4 / 7, 3 / 7, 0]),
    ],
)
def test_samples_are_distributed_as_they_should_be(options, expected):
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    options = GenerationOptions(do_sample=True, generator=generator, **options)
    tokens = choose(PROBABILITIES.log().expand(n, -1), options, None)
    frequencies = torch.bincount(tokens, minlength=4) / n
    # Five standard deviations of a frequency.
    torch.testing.assert_close(frequencies, torch.tensor(expected), rtol=0, atol=5 * 0.5 / n**0.5)
    assert ((frequencies == 0) == (torch.tensor(expected) == 0)).all()


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(-50, 50), min_size=1, max_size=12),
    k=st.integers(0, 15),
    p=st.floats(0, 1, exclude_min=True),
)
def test_filters_keep_the_best(scores, k, p):
    scores = torch.tensor([scores])
    best = scores.max()
    for kept in (keep_top_k(scores, k)[0], keep_top_p(scores, p)[0]):
        finite = kept.isfinite()
        assert finite.any()
        assert kept[finite].max() == best
        assert torch.equal(kept[finite], scores[0][finite])
        if not finite.all():
            assert scores[0][~finite].max() <= kept[finite].min()
    if 0 < k:
        # Equal scores stay together.
        assert keep_top_k(scores, k).isfinite().sum() >= min(k, scores.shape[1])
    assert scores.softmax(-1)[keep_top_p(scores, p).isfinite()].sum() >= p - 1e-5


BAD_OPTIONS = {
    "max_new_tokens": (0, "at least 1"),
    "max_length": (-3, "at least 1"),
    "temperature": (0.0, "positive; do_sample=False takes the best token"),
    "top_k": (-1, "at least 0"),
    "top_p": (1.5, "above 0 and at most 1"),
    "min_p": (-0.1, "from 0 to 1"),
    "repetition_penalty": (0.0, "positive"),
    "stop_strings": (("a", ""), "a list of texts"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range(vlm, name):
    value, expected = BAD_OPTIONS[name]
    with pytest.raises(UserError, match=f"^{re.escape(f'{name} is {value!r} and must be {expected}')}$"):
        vlm.generate_batch(None, ["A"], **{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
def test_options_that_are_not_numbers(name):
    with pytest.raises(UserError, match=name):
        GenerationOptions(**{name: float("nan")})


def test_unknown_options_list_the_known_ones(vlm):
    with pytest.raises(UserError, match="generate 'temprature', 'num_beams' is unknown;.*max_new_tokens.*temperature"):
        vlm.generate_batch(None, ["A"], temprature=1.0, num_beams=4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_use_cache_is_accepted(vlm, use_cache):
    """Cobra crashes without it."""
    expected = vlm.generate(picture(0), TEXTS[0], max_new_tokens=4)
    assert vlm.generate(picture(0), TEXTS[0], max_new_tokens=4, use_cache=use_cache) == expected


@pytest.mark.parametrize(("images", "texts"), [(1, 2), (3, 2), (4, 1)])
def test_an_image_for_every_prompt(vlm, pixels, images, texts):
    pixels = {name: value[:images] for name, value in pixels.items()}
    with pytest.raises(UserError, match=f"there are {images} images for {texts} prompts"):
        vlm.generate_batch(pixels, TEXTS[:texts])


def test_no_prompts_give_no_answers(vlm):
    assert vlm.generate_batch(None, []) == []
    assert vlm.generate_batch(None, [], return_string_probabilities=["Yes"]) == ([], [])


def test_an_empty_prompt_needs_an_image(vlm):
    assert isinstance(vlm.generate(picture(0), "", max_new_tokens=2), str)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        vlm.generate_batch(None, ["A", ""])


def test_generate_is_a_batch_of_one(vlm, pixels):
    answers = vlm.generate_batch(pixels, TEXTS, max_new_tokens=12)
    alone = [vlm.generate(picture(index), text, max_new_tokens=12) for index, text in enumerate(TEXTS)]
    assert alone == answers
    assert all(answers)
    assert vlm.generate(None, TEXTS[0], max_new_tokens=12) == vlm.generate_batch(None, TEXTS[:1], max_new_tokens=12)[0]


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 3.0}])
def test_pieces_join_to_the_answer(vlm, options):
    def again():
        return {"generator": torch.Generator().manual_seed(4)} if options else {}

    for text in TEXTS:
        pieces = list(vlm.stream(picture(1), text, max_new_tokens=20, eos_token_id=NEVER, **options, **again()))
        expected = vlm.generate(picture(1), text, max_new_tokens=20, eos_token_id=NEVER, **options, **again())
        assert "".join(pieces).strip() == expected
        assert len(pieces) > 5


def test_pieces_come_while_the_answer_is_written(vlm, batch_sizes):
    stream = vlm.stream(None, TEXTS[0], max_new_tokens=50, eos_token_id=NEVER)
    next(stream)
    assert len(batch_sizes) < 10


def told(vlm, monkeypatch, ids):
    monkeypatch.setattr(
        "cobra.models.vlms.generation_mixin.generate_ids", lambda *_: iter([[(0, token)] for token in ids])
    )
    return list(vlm.stream(None, "A"))


def test_a_character_of_several_tokens_is_told_whole(vlm, monkeypatch):
    text = "h\u00e9 \u4e2d\u6587 \U0001f600!"
    ids = vlm.llm_backbone.tokenizer(text).input_ids
    assert len(ids) > len(text)
    pieces = told(vlm, monkeypatch, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "\u4e2d" in pieces
    # Cut off within the last character: what is there is told, as the whole answer tells it.
    cut = vlm.llm_backbone.tokenizer("ab\U0001f600").input_ids[:-1]
    assert "".join(told(vlm, monkeypatch, cut)) == vlm.llm_backbone.tokenizer.decode(cut) == "ab\ufffd"


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 767), max_size=12))
def test_pieces_of_any_tokens_join_to_their_text(vlm, ids):
    with pytest.MonkeyPatch.context() as monkeypatch:
        pieces = told(vlm, monkeypatch, ids)
    assert "".join(pieces) == vlm.llm_backbone.tokenizer.decode(ids, skip_special_tokens=True)


def test_string_probabilities_are_those_of_the_logits(vlm, pixels):
    answers = ["Yes", "No", "C"]
    texts, probabilities = vlm.generate_batch(pixels, TEXTS, return_string_probabilities=answers, max_new_tokens=3)
    assert texts == vlm.generate_batch(pixels, TEXTS, max_new_tokens=3)
    _, scores = vlm.prefill(pixels, [vlm.tokenize(text) for text in TEXTS])
    expected = scores[:, [vlm.string2idx[answer] for answer in answers]].double().softmax(-1)
    assert [len(row) for row in probabilities] == [3] * 4
    torch.testing.assert_close(torch.tensor(probabilities, dtype=torch.double), expected, rtol=1e-5, atol=1e-7)
    assert torch.tensor(probabilities).sum(1).tolist() == pytest.approx([1.0] * 4)


def test_string_probabilities_of_answers_that_are_far_from_likely(vlm, monkeypatch):
    """Among all tokens their probabilities are zero in fp32; among themselves they are not."""
    scores = torch.full((1, 768), 500.0)
    scores[0, vlm.string2idx["Yes"]], scores[0, vlm.string2idx["No"]] = 1.0, 0.0
    monkeypatch.setattr(vlm, "prefill", lambda pixels, prompts, prefix: (None, scores))
    monkeypatch.setattr("cobra.models.vlms.generation_mixin.generate_ids", lambda *_: iter([]))
    _, probabilities = vlm.generate_batch(None, ["A"], return_string_probabilities=["Yes", "No"])
    assert probabilities[0] == pytest.approx([0.7310586, 0.2689414])


def test_an_answer_of_several_tokens_has_no_probability(vlm):
    with pytest.raises(
        UserError, match="single-token answer 'Perhaps' is unknown; the known ones are: True, False, Yes, No, A"
    ):
        vlm.generate_batch(None, ["A"], return_string_probabilities=["Yes", "Perhaps"])


@pytest.mark.parametrize("ask", ["generate", "stream", "generate_batch", "search_batch"])
def test_a_prompt_that_is_too_long_is_counted_and_never_cut(vlm, ask):
    limit = vlm.max_text_length
    text = "a" + " red" * (limit - 1)
    assert len(vlm.tokenize(text)) == limit
    arguments = {
        "generate_batch": (None, [text + " red"]),
        "search_batch": (None, [text + " red"], SearchOptions("vote")),
    }.get(ask, (None, text + " red"))
    with pytest.raises(UserError, match=f"the prompt has {limit + 1:,} tokens, and the model reads {limit:,} at most"):
        list(getattr(vlm, ask)(*arguments))


def test_images_of_any_mode_and_size(vlm):
    images = [picture(0, (10, 90)).convert("L"), picture(1, (300, 7)).convert("RGBA"), picture(2).convert("P")]
    pixels = vlm.preprocess(images)
    assert {name: tuple(value.shape) for name, value in pixels.items()} == {
        "dino": (3, 3, 48, 48),
        "siglip": (3, 3, 48, 48),
    }
    assert len(vlm.generate_batch(pixels, ["A", "B", "C"], max_new_tokens=2)) == 3
