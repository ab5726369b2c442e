import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.demo.captions import canonical_caption, places, reference_captions
from cobra.demo.questions import KINDS, MORE, RELATIONS, ask
from cobra.demo.scenes import Scene, SceneObject, random_scene
from cobra.reasoning.trace import extract_reasoning_trace


def scene(*objects):
    return Scene(
        tuple(sorted(SceneObject(column, row, *kind.split()[::-1]) for row, column, kind in objects)), "grey", 0
    )


@pytest.mark.parametrize(
    ("objects", "caption"),
    [
        ([(0, 0, "red circle")], "A red circle at the top left."),
        ([(1, 1, "red cross")], "A red cross at the centre."),
        (
            [(2, 2, "blue square"), (0, 0, "red circle")],
            "A red circle at the top left and a blue square at the bottom right.",
        ),
        ([(0, 2, "red cross"), (0, 0, "red cross")], "A red cross at the top left and a red cross at the top right."),
        (
            [(0, 2, "red star"), (0, 1, "blue circle"), (1, 0, "cyan star")],
            "A cyan star at the left, a blue circle at the top and a red star at the top right.",
        ),
    ],
)
def test_canonical_captions(objects, caption):
    assert canonical_caption(scene(*objects)) == caption


@given(st.integers(0, 2**32))
def test_references_are_five_different_sentences_that_name_every_kind(seed):
    rng = random.Random(seed)
    drawn = random_scene(rng, "held-out")
    references = reference_captions(rng, drawn)
    assert len(set(references)) == 5
    for text in references:
        assert re.fullmatch(r"[A-Z][a-z ,:]+\.", text)
        for item in drawn.objects:
            assert item.colour in text and item.shape in text


@given(st.integers(0, 2**32), st.sampled_from(sorted(KINDS)))
def test_every_answer_has_four_stages_and_its_exact_conclusion(seed, kind):
    rng = random.Random(seed)
    drawn = random_scene(rng, "train")
    exchange = ask(rng, drawn, kind)
    if exchange is None:
        return
    trace = extract_reasoning_trace(exchange.answer)
    assert trace.is_valid
    assert (trace.summary, trace.caption) == (exchange.summary, canonical_caption(drawn))
    assert (trace.reasoning, trace.conclusion) == (exchange.reasoning, exchange.conclusion)
    assert exchange.conclusion in exchange.options or not exchange.options


def find(objects, kind_name):
    return next(item for item in objects if item.kind == kind_name)


@given(st.integers(0, 2**32))
def test_conclusions_are_true(seed):
    rng = random.Random(seed)
    drawn = random_scene(rng, "train")
    objects = drawn.objects
    for kind in KINDS:
        exchange = ask(rng, drawn, kind)
        if exchange is None:
            continue
        question, answer = exchange.question, exchange.conclusion
        if kind == "describe":
            assert answer == canonical_caption(drawn)
        elif kind == "count":
            noun = re.match(r"How many (\w+) ", question)[1]
            stem = re.sub(r"(?<=s)es$|s$", "", noun)
            assert int(answer) == sum(stem in (item.shape, "shape") for item in objects)
        elif kind == "colour":
            shape = re.search(r"the (\w+)", question)[1]
            assert [item.colour for item in objects if item.shape == shape] == [answer]
        elif kind == "shape":
            colour = re.search(r"is (\w+)\?", question)[1]
            assert [item.shape for item in objects if item.colour == colour] == [answer]
        elif kind == "which":
            side, a, b = re.match(r"Which is (\w+), the (.+) or the (.+)\?", question).groups()
            first, second = find(objects, a), find(objects, b)
            upper, lower = (first, second) if first.row < second.row else (second, first)
            assert answer == f"The {(upper if side == 'above' else lower).kind}"
        else:
            a, side, b = re.match(r"Is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", question).groups()
            first, second = find(objects, a), find(objects, b)
            truth = {
                "left of": first.column < second.column,
                "right of": first.column > second.column,
                "above": first.row < second.row,
                "below": first.row > second.row,
            }[side]
            assert answer == ("Yes" if truth else "No")


@given(st.integers(0, 2**32), st.sampled_from((*RELATIONS, "count", "colour", "shape", MORE)))
def test_the_reasoning_names_the_objects_that_were_asked_for_with_their_places(seed, kind):
    rng = random.Random(seed)
    drawn = random_scene(rng, "train")
    exchange = ask(rng, drawn, kind)
    if exchange is None:
        return
    told = [item for item in drawn.objects if places([item]) in exchange.reasoning.lower()]
    if kind in RELATIONS:
        first, second = re.findall(r"the (\w+ \w+)", exchange.summary)
        assert [item.kind for item in told] in ([first, second], [second, first])
        here, asked, answer = re.search(r"It is (\w+), asked (\w+): (.+)\.$", exchange.reasoning).groups()
        assert re.search(rf"\b{asked}\b", exchange.question) and answer.capitalize() == exchange.conclusion
        assert (here == asked) == (answer in ("yes", f"the {first}"))
    elif kind in ("colour", "shape"):
        assert len(told) == 1 and exchange.conclusion in (told[0].colour, told[0].shape)
    elif kind == "count":
        assert len(told) == int(exchange.conclusion)
    else:
        one, other = re.findall(r"each (\w+)", exchange.summary)
        numbers = [sum(item.shape == shape for item in told) for shape in (one, other)]
        assert exchange.conclusion == ("Yes" if numbers[0] > numbers[1] else "No")


def test_answers_vary_and_yes_is_as_frequent_as_no():
    rng = random.Random(0)
    answers = {kind: [] for kind in KINDS}
    for _ in range(1500):
        drawn = random_scene(rng, "train")
        for kind in KINDS:
            exchange = ask(rng, drawn, kind)
            if exchange:
                answers[kind].append(exchange.conclusion)
    for kind in ("left or right", "above or below"):
        assert 0.4 < answers[kind].count("Yes") / len(answers[kind]) < 0.6
    assert set(answers["count"]) == {"0", "1", "2", "3"}
    commonest = max(answers["count"].count(value) for value in "0123")
    assert commonest / len(answers["count"]) < 0.6


def test_a_scene_without_an_answer_gives_none():
    twins = scene((0, 0, "red star"), (1, 1, "red star"))
    rng = random.Random(0)
    for kind in ("colour", "shape", "left or right", "above or below", "which"):
        assert ask(rng, twins, kind) is None
    assert ask(rng, twins, "count").conclusion in "02"
