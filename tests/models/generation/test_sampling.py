"""Filters of the scores, draws, and samples that belong to a row whatever its batch."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch import enliven, picture, scratch_vlm

from cobra.models.generation import sampling
from cobra.models.generation.sampling import (
    best_tokens,
    choose,
    draw,
    keep_likely,
    keep_min_p,
    next_numbers,
    penalise_repetition,
    row_seeds,
)
from cobra.models.vlms import GenerationOptions
from cobra.util.errors import UserError

NEVER = -1
TEXTS = [
    "<|user|>\nWhat is it?<|endoftext|>\n<|assistant|>\n",
    "A",
    "In: Which of the many things in the picture is the one on the left of the red one?\nOut:",
    "a red circle",
    "<|user|>\n",
]
PROBABILITIES = torch.tensor([0.05, 0.4, 0.3, 0.25])


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm())


def ids_of(vlm, texts=TEXTS, pixels=None, **options):
    defaults = {"max_new_tokens": 12, "eos_token_id": NEVER, "do_sample": True, "temperature": 5.0}
    return vlm.generate_batch_ids(
        pixels, [vlm.tokenize(text) for text in texts], GenerationOptions(**defaults | options)
    )


def slow_filters(scores, top_k, top_p, min_p):
    """By sorting everything, one row at a time, in fp64."""
    kept = torch.full_like(scores, -torch.inf)
    for row, own in enumerate(scores.double()):
        own = own.masked_fill(own < own.sort().values[-top_k], -torch.inf) if 0 < top_k < len(own) else own
        probabilities = own.softmax(-1)
        order = probabilities.argsort(descending=True)
        before = probabilities[order].cumsum(0) - probabilities[order]
        chosen = order[(before < top_p) | (top_p == 1) | (torch.arange(len(order)) == 0)]
        chosen = chosen[probabilities[chosen] >= min_p * probabilities.max() - 1e-9]
        kept[row, chosen] = own[chosen].float()
    return kept


@settings(max_examples=100, deadline=None)
@given(
    scores=st.integers(1, 40).flatmap(
        lambda size: st.lists(
            st.lists(st.sampled_from([-torch.inf, -1.0, 0.0, 2.0, 3.0]), min_size=size, max_size=size), min_size=1
        )
    )
)
def test_the_best_token_is_the_first_of_the_best(scores):
    scores = torch.tensor(scores)
    assert best_tokens(scores).tolist() == [row.index(max(row)) for row in scores.tolist()]
    assert best_tokens(torch.tensor([[1.0] * 5 + [torch.nan] * 3])).item() == 5


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
@pytest.mark.parametrize(
    "filters",
    [
        *((0, p, 0.0) for p in (0.01, 0.5, 0.9, 0.999)),
        (5, 1.0, 0.0),
        (300, 0.9, 0.0),
        (1000, 1.0, 0.1),
        (50, 0.8, 0.02),
    ],
)
def test_the_filters_look_at_the_best_first_and_keep_the_same(scale, filters):
    """Of flat rows more than the best few are kept, of peaked ones fewer; both stand in one batch."""
    scores = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)) * scale
    scores[3:] *= 10
    kept, tokens = keep_likely(scores, *filters)
    assert kept.isfinite().any(1).all() and (tokens[:, 1:] > tokens[:, :-1]).all()
    found = torch.full_like(scores, -torch.inf).scatter(1, tokens, kept)
    assert torch.equal(found, slow_filters(scores, *filters))
    looked_at = min(max(128, filters[0] + 1), 1000)
    assert kept.shape[1] == (looked_at if (found.isfinite().sum(1) < looked_at).all() else 1000)


def test_the_filters_look_at_more_by_and_by():
    scores = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    widths = []
    for scale in (20.0, 3.0, 0.1):
        kept, tokens = keep_likely(scores * scale, 0, 0.9, 0.0)
        widths.append(kept.shape[1])
        found = torch.full_like(scores, -torch.inf).scatter(1, tokens, kept)
        assert torch.equal(found.isfinite(), slow_filters(scores * scale, 0, 0.9, 0.0).isfinite())
    assert widths == [128, 2048, 40_000]


def test_scores_that_are_equal_stay_together():
    scores = torch.zeros(2, 1000)
    assert keep_likely(scores, 5, 1.0, 0.0)[0].isfinite().all()
    assert keep_likely(scores, 0, 1.0, 1.0)[0].isfinite().all()
    assert keep_likely(scores, 0, 0.5, 0.0)[0].isfinite().sum(1).tolist() == pytest.approx([500, 500], abs=1)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_do_not_change_what_is_drawn(seed):
    """Not even one for which many more tokens have to be looked at."""
    scores = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed)) * torch.tensor([[9.0], [0.1]])
    options = GenerationOptions(do_sample=True, top_p=0.95)
    for number in torch.linspace(0, 0.999, 20, dtype=torch.float64):
        together = choose(scores, options, None, number.expand(2))
        alone = [choose(scores[row : row + 1], options, None, number.view(1)).item() for row in range(2)]
        assert together.tolist() == alone


@settings(max_examples=80, deadline=None)
@given(scores=st.lists(st.floats(-50, 50), min_size=1, max_size=12), p=st.floats(0, 1))
def test_min_p_keeps_what_is_near_the_best(scores, p):
    scores = torch.tensor([scores])
    kept = keep_min_p(scores, p)[0]
    ratios = (scores[0].double() - scores.max()).exp()
    assert kept[scores[0].argmax()] == scores.max()
    # But for rounding of the floor.
    assert kept[ratios >= p * (1 + 1e-4)].isfinite().all()
    assert not kept[ratios < p * (1 - 1e-4)].isfinite().any()
    assert torch.equal(kept[kept.isfinite()], scores[0][kept.isfinite()])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_p": 0.7}, [0, 4 / 7, 3 / 7, 0]),
        ({"min_p": 0.1}, [0.05, 0.4, 0.3, 0.25]),
        ({"min_p": 1.0}, [0.0, 1.0, 0.0, 0.0]),
        # Relative to the best at this temperature: a half becomes 0.7.
        ({"min_p": 0.76, "temperature": 2.0}, [0, 0.4**0.5 / 1.68016, 0.3**0.5 / 1.68016, 0.5 / 1.68016]),
        ({"min_p": 0.5, "top_k": 2}, [0, 4 / 7, 3 / 7, 0]),
    ],
)
def test_min_p_samples_are_distributed_as_they_should_be(options, expected):
    n = 20_000
    options = GenerationOptions(do_sample=True, generator=torch.Generator().manual_seed(0), **options)
    tokens = choose(PROBABILITIES.log().expand(n, -1), options, None)
    frequencies = torch.bincount(tokens, minlength=4) / n
    torch.testing.assert_close(frequencies, torch.tensor(expected), rtol=0, atol=5 * 0.5 / n**0.5)
    assert ((frequencies == 0) == (torch.tensor(expected) == 0)).all()


def test_a_draw_inverts_the_cumulated_probabilities():
    scores = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log()
    numbers = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores.expand(6, -1), numbers).tolist() == [0, 0, 2, 2, 3, 3]


def test_a_draw_is_right_in_every_block():
    probabilities = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities /= probabilities.sum()
    cumulated = probabilities.cumsum(-1)
    numbers = torch.linspace(0, 0.9999, 3000, dtype=torch.float64)
    tokens = draw(probabilities.float().log().expand(3000, -1), numbers)
    expected = torch.searchsorted(cumulated[0], numbers, right=True)
    # But where a number meets a sum within the rounding of fp32.
    near = (cumulated - numbers.unsqueeze(1)).abs().amin(1) < 1e-6
    assert near.sum() < 30
    assert torch.equal(tokens[~near], expected[~near])


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 900), seed=st.integers(0, 99), share=st.floats(0, 1), number=st.floats(0, 1, exclude_max=True)
)
def test_what_was_filtered_out_is_never_drawn(size, seed, share, number):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, size, generator=generator) * 10
    out = torch.rand(size, generator=generator) < share
    out[seed % size] = False
    scores[0, out] = -torch.inf
    for own in (0.0, 1 - 2**-53, number):
        assert not out[draw(scores, torch.tensor([own], dtype=torch.float64))]


EXTREME = [0.0, -0.0, 1.0, -3.0, 1e-38, 88.0, 3e38, -3e38, torch.inf, -torch.inf, torch.nan]


@settings(max_examples=150, deadline=None)
@given(
    row=st.lists(st.sampled_from(EXTREME), min_size=3, max_size=3),
    size=st.integers(3, 600),
    fields=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([5e-324, 1e-40, 1e-20, 0.7, 1e300, math.inf]),
            "repetition_penalty": st.sampled_from([5e-324, 1e-40, 1.0, 1.3, 1e300, math.inf]),
        },
        optional={"top_p": st.just(0.9), "top_k": st.just(2), "min_p": st.just(0.1)},
    ),
)
def test_whatever_the_scores_and_options_every_row_gets_a_token_and_no_row_another_one(row, size, fields):
    """Rows whose scores are not numbers too; the others are drawn as they are without them."""
    options = GenerationOptions(do_sample=True, **fields)
    scores = torch.randn(4, size, generator=torch.Generator().manual_seed(0)) * 5
    scores[1, :3], scores[2] = torch.tensor(row), torch.tensor(row[0])
    seen = (torch.arange(size) % 2 == 0).expand(4, -1)
    numbers = torch.tensor([0.3, 1 - 2**-53, 0.0, 0.9], dtype=torch.float64)
    tokens = choose(scores, options, seen, numbers)
    assert ((tokens >= 0) & (tokens < size)).all()
    assert tokens[[0, 3]].tolist() == choose(scores[[0, 3]], options, seen[[0, 3]], numbers[[0, 3]]).tolist()


def test_a_row_without_probabilities_gets_its_best_token():
    scores = torch.zeros(4, 600)
    scores[0, 500], scores[1, 300], scores[2] = torch.inf, torch.nan, -torch.inf
    assert draw(scores, torch.full((4,), 0.999, dtype=torch.float64)).tolist() == [500, 300, 0, 599]


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-40, 1e-30, 1e-20, 1e-12])
def test_the_coldest_samples_are_the_best_tokens(temperature):
    scores = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)) * 30
    scores[0, :2] = torch.tensor([1e4, 1e4 + 1e-3])
    for filters in ({}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}):
        options = GenerationOptions(do_sample=True, temperature=temperature, **filters)
        assert choose(scores, options, None).equal(scores.argmax(-1))


def test_the_heaviest_penalties_order_tokens_as_heavy_ones_do():
    scores = torch.tensor([[3.0, 2.0, 0.0, -1.0, -2.0, -torch.inf]])
    seen = torch.tensor([[True, False, True, True, True, True]])
    for penalty, order in ((math.inf, [1, 0, 2, 3, 4, 5]), (5e-324, [0, 1, 2, 3, 4, 5])):
        found = penalise_repetition(scores, seen, penalty)
        assert not found.isnan().any() and found[0].argsort(descending=True, stable=True).tolist() == order
        assert found.isinf().tolist() == [[False] * 5 + [True]]


def test_a_sample_is_the_same_in_any_batch(vlm):
    seeds = [3, 1, 4, 1, 5]
    together = ids_of(vlm, seeds=seeds)
    assert together == [ids_of(vlm, [text], seeds=[seed])[0] for text, seed in zip(TEXTS, seeds, strict=True)]
    order = [4, 2, 0, 1, 3]
    turned = ids_of(vlm, [TEXTS[place] for place in order], seeds=[seeds[place] for place in order])
    assert turned == [together[place] for place in order]
    assert together != ids_of(vlm, seeds=[seed + 1 for seed in seeds])
    assert len({tuple(ids) for ids in ids_of(vlm, TEXTS[:1] * 5, seeds=range(5))}) == 5


def test_a_sample_does_not_depend_on_when_others_end(vlm):
    seeds = [3, 1, 4, 1, 5]
    free = ids_of(vlm, seeds=seeds)
    end = free[0][3]
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in free]
    assert len(expected[0]) <= 4 and max(map(len, expected)) == 12
    assert ids_of(vlm, seeds=seeds, eos_token_id=end) == expected


def test_a_sample_with_images_and_all_filters_is_the_same_in_any_batch(vlm):
    pixels = vlm.preprocess([picture(index) for index in range(len(TEXTS))])
    options = {"top_k": 200, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.3}
    together = ids_of(vlm, pixels=pixels, seeds=range(5), **options)
    for place, text in enumerate(TEXTS):
        alone = {name: value[place : place + 1] for name, value in pixels.items()}
        assert ids_of(vlm, [text], pixels=alone, seeds=[place], **options)[0] == together[place]


def test_seeds_leave_the_generator_alone_and_greedy_needs_neither(vlm):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    ids_of(vlm, seeds=range(5), generator=generator)
    ids_of(vlm, do_sample=False, generator=generator)
    assert generator.get_state().equal(before)
    ids_of(vlm, generator=generator)
    assert not generator.get_state().equal(before)


def test_the_largest_number_stays_below_1_where_there_is_no_fp64(monkeypatch):
    monkeypatch.setattr(sampling, "_exact", lambda device: torch.float32)
    numbers = next_numbers([SimpleNamespace(random=lambda: 1 - 2**-53)], torch.device("cpu"))
    assert numbers.dtype == torch.float32 and numbers.item() < 1
    assert draw(torch.tensor([[0.0, 0.0, -torch.inf]]), numbers).item() == 1


def test_streams_are_fixed_for_good():
    """Python promises these numbers for a seed of text, on every platform."""
    streams = [random.Random(seed) for seed in row_seeds([0, 1], 2, None)]
    numbers = next_numbers(streams, torch.device("cpu"))
    assert numbers.dtype == torch.float64
    assert numbers.tolist() == [random.Random("0").random(), random.Random("1").random()]
    base = torch.Generator().manual_seed(5)
    first, second = row_seeds(None, 2, base)
    assert first.split("/")[0] == second.split("/")[0] and first != second
    assert row_seeds(None, 2, base) != [first, second]


def test_a_seed_for_every_prompt(vlm):
    with pytest.raises(UserError, match="there are 2 seeds for 5 prompts"):
        ids_of(vlm, seeds=[1, 2])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_min_p_out_of_range(value):
    with pytest.raises(UserError, match="^min_p is "):
        GenerationOptions(min_p=value)
