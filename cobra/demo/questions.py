"""Questions about scenes and their four-stage answers, in LLaVA-CoT's form.

Answers are short on purpose (55 to 90 tokens of the tiny tokenizer): a laptop trains on them in minutes. The CAPTION
stage grounds the answer in the image, the REASONING leads from it to the CONCLUSION, which is the exact answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from cobra.demo.captions import COUNT_WORDS, canonical_caption, groups, places, plural, sentence, side_name
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

# Sides from the beginning of an axis and from its end.
_COLUMN_SIDES = ("left of", "right of")
_ROW_SIDES = ("above", "below")


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
    reasoning = f"I see {_number(len(scene.objects), 'shape')}."
    # The benchmark's prompt is half of all, since it is what the captions are scored with.
    question = CAPTION_PROMPTS[0] if rng.random() < 0.5 else rng.choice(CAPTION_PROMPTS[1:])
    return _Parts(question, "I describe the image.", reasoning, canonical_caption(scene))


def _count(rng: random.Random, scene: Scene) -> _Parts:
    if rng.random() < _ALL_SHAPES_SHARE:
        one, number = "shape", len(scene.objects)
    else:
        present = sorted({item.shape for item in scene.objects})
        absent = [shape for shape in SHAPES if shape not in present]
        one = rng.choice(present if rng.random() < _PRESENT_SHARE else absent)
        number = sum(item.shape == one for item in scene.objects)
    question = rng.choice((f"How many {plural(one)} are there?", f"How many {plural(one)} are in the image?"))
    return _Parts(question, f"I look for each {one}.", _counted(scene, one), str(number))


def _colour(rng: random.Random, scene: Scene) -> _Parts | None:
    shapes = [item.shape for item in scene.objects]
    single = [item for item in scene.objects if shapes.count(item.shape) == 1]
    if not single:
        return None
    item = rng.choice(single)
    question = rng.choice((f"What colour is the {item.shape}?", f"Which colour does the {item.shape} have?"))
    return _Parts(question, f"I look for each {item.shape}.", sentence(places([item])), item.colour)


def _shape(rng: random.Random, scene: Scene) -> _Parts | None:
    colours = [item.colour for item in scene.objects]
    single = [item for item in scene.objects if colours.count(item.colour) == 1]
    if not single:
        return None
    item = rng.choice(single)
    question = rng.choice((f"What shape is {item.colour}?", f"Which shape is {item.colour}?"))
    return _Parts(question, f"I look for each {item.colour} shape.", sentence(places([item])), item.shape)


def _compare(rng: random.Random, scene: Scene, axis: str, sides: tuple[str, str]) -> _Parts | None:
    """Ask for the order of two objects along an axis, `column` or `row`; `sides` name it from its beginning and end."""
    pair = _pair(rng, scene, axis)
    if pair is None:
        return None
    first, second = pair
    here, asked = _side(first, second, axis, sides), rng.choice(sides)
    answer = "yes" if here == asked else "no"
    question = f"Is the {first.kind} {asked} the {second.kind}?"
    summary = f"I compare the {first.kind} with the {second.kind}: is it {side_name(asked)}?"
    return _Parts(question, summary, _relation(first, second, here, asked, answer), answer.capitalize())


def _which(rng: random.Random, scene: Scene) -> _Parts | None:
    pair = _pair(rng, scene, "row")
    if pair is None:
        return None
    first, second = pair
    here, asked = _side(first, second, "row", _ROW_SIDES), rng.choice(_ROW_SIDES)
    chosen = f"the {(first if here == asked else second).kind}"
    question = f"Which is {asked}, the {first.kind} or the {second.kind}?"
    summary = f"I compare the {first.kind} with the {second.kind}: which is {asked}?"
    options = (f"The {first.kind}", f"The {second.kind}")
    return _Parts(question, summary, _relation(first, second, here, asked, chosen), chosen.capitalize(), options)


def _side(first: SceneObject, second: SceneObject, axis: str, sides: tuple[str, str]) -> str:
    return sides[0] if getattr(first, axis) < getattr(second, axis) else sides[1]


def _relation(first: SceneObject, second: SceneObject, here: str, asked: str, answer: str) -> str:
    """Say where both objects are, how the first lies to the second, what was asked, and what follows.

    What is and what was asked stand side by side: further apart, a tiny model does not compare them.
    """
    relation = f"it is {side_name(here)}, asked {side_name(asked)}: {answer}"
    return f"{sentence(places((first, second)))} {sentence(relation)}"


def _more(rng: random.Random, scene: Scene) -> _Parts | None:
    """Ask whether one shape is there more often than another: yes and no are equally likely where both can be had."""
    counts = {shape: sum(item.shape == shape for item in scene.objects) for shape in SHAPES}
    pairs = [(a, b) for a in SHAPES for b in SHAPES if a != b and counts[a] + counts[b] > 0]
    holding = [(a, b) for a, b in pairs if counts[a] > counts[b]]
    one, other = rng.choice(holding if rng.random() < 0.5 else [pair for pair in pairs if pair not in holding])
    question = f"Are there more {plural(one)} than {plural(other)}?"
    reasoning = f"{_counted(scene, one)} {_counted(scene, other)}"
    answer = "Yes" if counts[one] > counts[other] else "No"
    return _Parts(question, f"I look for each {one} and each {other}.", reasoning, answer)


def _counted(scene: Scene, name: str) -> str:
    """List the objects of a shape, or all for `shape`, with their number: `Red cross top: one cross`."""
    found = [item for item in scene.objects if name in (item.shape, "shape")]
    number = _number(len(found), name)
    return sentence(f"{places(found)}: {number}" if found else number)


def _number(count: int, name: str) -> str:
    return f"{COUNT_WORDS[count]} {name if count == 1 else plural(name)}"


def _pair(rng: random.Random, scene: Scene, axis: str) -> tuple[SceneObject, SceneObject] | None:
    """Draw two objects that their kinds identify and that lie apart along an axis, in either order."""
    single = [item for count, item in groups(scene.objects) if count == 1]
    pairs = [(a, b) for a in single for b in single if getattr(a, axis) != getattr(b, axis)]
    return rng.choice(pairs) if pairs else None


KINDS: dict[str, Callable[[random.Random, Scene], _Parts | None]] = {
    "describe": _describe,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "left or right": partial(_compare, axis="column", sides=_COLUMN_SIDES),
    "above or below": partial(_compare, axis="row", sides=_ROW_SIDES),
    "which": _which,
}
"""Kinds of the demonstration's questions."""

RELATIONS = ("left or right", "above or below", "which")
"""Kinds that need the places of two objects, and more rows than the others to be learned."""

MORE = "more"
"""Kind of question that is answered by counting twice and comparing, for studies."""
