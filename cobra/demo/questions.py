"""Questions about scenes and their four-stage answers, in LLaVA-CoT's form.

Answers are short on purpose (50 to 70 tokens of the tiny tokenizer): a laptop trains on them in minutes. The CAPTION
stage grounds the answer in the image, the REASONING leads from it to the CONCLUSION, which is the exact answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from cobra.demo.captions import COLUMNS, COUNT_WORDS, ROWS, canonical_caption, groups, listing, plural
from cobra.demo.scenes import SHAPES, Scene, SceneObject
from cobra.reasoning.trace import ReasoningTrace, format_reasoning_trace

# The first one is the benchmark's default prompt.
CAPTION_PROMPTS = (
    "Please carefully observe the image and come up with a caption for the image.",
    "Describe the image.",
    "What does the image show?",
    "Write a short caption for the picture.",
    "What is in the picture?",
)

# How often a count question asks for a shape that the scene holds, and for all shapes.
_PRESENT_SHARE = 0.75
_ALL_SHAPES_SHARE = 0.3


@dataclass(frozen=True)
class Exchange:
    """One question with its answer in four stages."""

    kind: str
    """A key of `KINDS`, or `MORE`."""
    question: str
    summary: str
    caption: str
    reasoning: str
    conclusion: str
    """The exact answer."""
    options: tuple[str, ...] = ()
    """The answers among which the question itself leaves the choice; empty where it names none."""

    @property
    def answer(self) -> str:
        """The tagged text, as published."""
        return format_reasoning_trace(ReasoningTrace(self.summary, self.caption, self.reasoning, self.conclusion))


def ask(rng: random.Random, scene: Scene, kind: str) -> Exchange | None:
    """Draw a question of a kind; None where the scene has no answer to any such question; `rng` moves on.

    Args:
        rng: Source of the draw.
        scene: The scene.
        kind: A key of `KINDS`, or `MORE`.
    """
    parts = _more(rng, scene) if kind == MORE else KINDS[kind](rng, scene)
    return None if parts is None else Exchange(kind=kind, caption=canonical_caption(scene), **parts._asdict())


class _Parts(NamedTuple):
    """Parts that differ by kind of question."""

    question: str
    summary: str
    reasoning: str
    conclusion: str
    options: tuple[str, ...] = ()


def _describe(rng: random.Random, scene: Scene) -> _Parts:
    objects = scene.objects
    if len(objects) == 2 and len(groups(objects)) == 2:
        first, second = objects
        reasoning = _places(first, second, "row" if first.column == second.column else "column")
    else:
        reasoning = f"I see {COUNT_WORDS[len(objects)]} shape{'' if len(objects) == 1 else 's'}."
    # The benchmark's prompt is half of all, since it is what the captions are scored with.
    question = CAPTION_PROMPTS[0] if rng.random() < 0.5 else rng.choice(CAPTION_PROMPTS[1:])
    return _Parts(question, "I describe the image.", reasoning, canonical_caption(scene))


def _count(rng: random.Random, scene: Scene) -> _Parts:
    if rng.random() < _ALL_SHAPES_SHARE:
        counted, one, many = list(scene.objects), "shape", "shapes"
    else:
        present = sorted({item.shape for item in scene.objects})
        absent = [shape for shape in SHAPES if shape not in present]
        one = rng.choice(present if rng.random() < _PRESENT_SHARE else absent)
        many = plural(one)
        counted = [item for item in scene.objects if item.shape == one]
    question = rng.choice((f"How many {many} are there?", f"How many {many} are in the image?"))
    reasoning = f"I see {listing(counted)}." if counted else f"I see no {one}."
    return _Parts(question, f"I count the {many}.", reasoning, str(len(counted)))


def _colour(rng: random.Random, scene: Scene) -> _Parts | None:
    shapes = [item.shape for item in scene.objects]
    single = [item for item in scene.objects if shapes.count(item.shape) == 1]
    if not single:
        return None
    item = rng.choice(single)
    question = rng.choice((f"What colour is the {item.shape}?", f"Which colour does the {item.shape} have?"))
    return _Parts(question, f"I look for the {item.shape}.", f"The {item.shape} is {item.colour}.", item.colour)


def _shape(rng: random.Random, scene: Scene) -> _Parts | None:
    colours = [item.colour for item in scene.objects]
    single = [item for item in scene.objects if colours.count(item.colour) == 1]
    if not single:
        return None
    item = rng.choice(single)
    question = rng.choice((f"What shape is {item.colour}?", f"Which shape is {item.colour}?"))
    summary = f"I look for the {item.colour} shape."
    return _Parts(question, summary, f"The {item.colour} shape is a {item.shape}.", item.shape)


def _compare(rng: random.Random, scene: Scene, axis: str, sides: tuple[str, str]) -> _Parts | None:
    """Ask for the order of two objects along an axis, `column` or `row`; `sides` name it from its beginning and end."""
    pair = _pair(rng, scene, axis)
    if pair is None:
        return None
    first, second = pair
    side = rng.choice(sides)
    holds = (getattr(first, axis) < getattr(second, axis)) == (side == sides[0])
    question = f"Is the {first.kind} {side} the {second.kind}?"
    return _Parts(question, f"I compare two {axis}s.", _places(first, second, axis), "Yes" if holds else "No")


def _which(rng: random.Random, scene: Scene) -> _Parts | None:
    pair = _pair(rng, scene, "row")
    if pair is None:
        return None
    side = rng.choice(("above", "below"))
    question = f"Which is {side}, the {pair[0].kind} or the {pair[1].kind}?"
    chosen = sorted(pair, key=lambda item: item.row)[0 if side == "above" else 1]
    options = (f"The {pair[0].kind}", f"The {pair[1].kind}")
    return _Parts(question, "I compare two rows.", _places(*pair, "row"), f"The {chosen.kind}", options)


def _more(rng: random.Random, scene: Scene) -> _Parts | None:
    """Ask whether one shape is there more often than another: yes and no are equally likely where both can be had."""
    counts = {shape: sum(item.shape == shape for item in scene.objects) for shape in SHAPES}
    pairs = [(a, b) for a in SHAPES for b in SHAPES if a != b and counts[a] + counts[b] > 0]
    holding = [(a, b) for a, b in pairs if counts[a] > counts[b]]
    one, other = rng.choice(holding if rng.random() < 0.5 else [pair for pair in pairs if pair not in holding])
    question = f"Are there more {plural(one)} than {plural(other)}?"
    reasoning = f"I see {_number(counts[one], one)} and {_number(counts[other], other)}."
    return _Parts(question, "I count two shapes.", reasoning, "Yes" if counts[one] > counts[other] else "No")


def _number(count: int, shape: str) -> str:
    return f"{COUNT_WORDS[count]} {shape if count == 1 else plural(shape)}"


def _pair(rng: random.Random, scene: Scene, axis: str) -> tuple[SceneObject, SceneObject] | None:
    """Draw two objects that their kinds identify and that lie apart along an axis, in either order."""
    single = [item for count, item in groups(scene.objects) if count == 1]
    pairs = [(a, b) for a in single for b in single if getattr(a, axis) != getattr(b, axis)]
    return rng.choice(pairs) if pairs else None


def _places(first: SceneObject, second: SceneObject, axis: str) -> str:
    names = COLUMNS if axis == "column" else ROWS
    here, there = names[getattr(first, axis)], names[getattr(second, axis)]
    return f"The {first.kind} is in the {here} {axis}, the {second.kind} in the {there} {axis}."


KINDS: dict[str, Callable[[random.Random, Scene], _Parts | None]] = {
    "describe": _describe,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "left or right": partial(_compare, axis="column", sides=("left of", "right of")),
    "above or below": partial(_compare, axis="row", sides=("above", "below")),
    "which": _which,
}
"""Kinds of the demonstration's questions."""

MORE = "more"
"""Kind of question that is answered by counting twice and comparing, for studies."""
