import random
import re

from hypothesis import given
from hypothesis import strategies as st

from cobra.demo.captions import cell_name
from cobra.demo.places import ask_places
from cobra.demo.scenes import SHAPES, random_scene

LIES = {
    "left of": lambda one, other: one.column < other.column,
    "right of": lambda one, other: one.column > other.column,
    "above": lambda one, other: one.row < other.row,
    "below": lambda one, other: one.row > other.row,
}


def place(item):
    return f"{item.kind} {cell_name(item)}"


def listed(answer):
    """Return the places that an answer lists, in their order."""
    return answer[0].lower() + answer[1:].removesuffix(".")


@given(st.integers(0, 2**32))
def test_answers_are_true_and_name_places_in_the_order_of_the_question(seed):
    rng = random.Random(seed)
    scene = random_scene(rng, "train")
    question, answer = ask_places(rng, scene)
    told = listed(answer)
    if beside := re.fullmatch(r"What is (left of|right of|above|below) the (\w+ \w+)\?", question):
        side, kind = beside.groups()
        item = next(item for item in scene.objects if item.kind == kind)
        others = [place(other) for other in scene.objects if LIES[side](other, item)]
        assert told == f"{place(item)}, {side.split()[0]}: {', '.join(others) or 'nothing'}"
    elif named := re.findall(rf"the (\w+ (?:{'|'.join(SHAPES)}))\b", question):
        assert told == ", ".join(place(item) for kind in named for item in scene.objects if item.kind == kind)
    else:
        name = re.fullmatch(r"Where (?:is each|are the) (.+)\?", question)[1]
        words = set(re.sub(r"(?<=s)es$|(?<=[a-z])s$", "", name).split()) | set(name.split())
        wanted = [item for item in scene.objects if words & {item.colour, item.shape} or name in ("shape", "shapes")]
        assert told == ", ".join(map(place, wanted)) or (not wanted and told.startswith("no "))


def test_all_forms_of_questions_are_drawn_and_some_find_nothing():
    rng = random.Random(1)
    drawn = [ask_places(rng, random_scene(rng, "train")) for _ in range(600)]
    forms = ("Where is the ", "Where are the ", "What is above", "What is left of", "Where is each ")
    assert all(sum(question.startswith(form) for question, _ in drawn) > 15 for form in forms)
    nothing = [answer for _, answer in drawn if answer.startswith("No ") or answer.endswith(": nothing.")]
    assert 30 < len(nothing) < 200
