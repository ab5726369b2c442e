"""Questions about places, from which the shipped baseline learns to find what a question names.

A tiny model sees where things are long before it finds the one that was asked for: lists of a question's own objects,
in the question's order and each with its place right after it, teach that; single answers don't. Fine-tuned on
questions about places, a baseline without them stays at chance after 400 steps.
"""

import random

from cobra.demo.captions import groups, places, plural, sentence, side_name
from cobra.demo.scenes import COLOURS, SHAPES, Scene, SceneObject

# Shares of questions about named objects and about a side of an object; the rest ask for all of a shape or a colour.
_NAMED_SHARE = 0.4
_SIDE_SHARE = 0.3
# How often a question asks for something that the scene holds.
_PRESENT_SHARE = 0.8

_SIDES = {"left of": ("column", -1), "right of": ("column", 1), "above": ("row", -1), "below": ("row", 1)}


def ask_places(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Draw a question about places in a scene, and its plain answer; `rng` moves on."""
    single = [item for count, item in groups(scene.objects) if count == 1]
    draw = rng.random()
    if single and draw < _NAMED_SHARE:
        return _named(rng, single)
    if single and draw < _NAMED_SHARE + _SIDE_SHARE:
        return _beside(rng, scene, single)
    return _each(rng, scene)


def _named(rng: random.Random, single: list[SceneObject]) -> tuple[str, str]:
    """Ask where some objects are, in any order; pairs are the commonest, as questions compare two."""
    asked = rng.sample(single, min(len(single), rng.choice((1, 2, 2, 3))))
    names = " and ".join(f"the {item.kind}" for item in asked)
    return f"Where {'is' if len(asked) == 1 else 'are'} {names}?", sentence(places(asked))


def _beside(rng: random.Random, scene: Scene, single: list[SceneObject]) -> tuple[str, str]:
    """Ask what lies on a side of an object."""
    item, side = rng.choice(single), rng.choice(tuple(_SIDES))
    axis, sign = _SIDES[side]
    found = [other for other in scene.objects if sign * (getattr(other, axis) - getattr(item, axis)) > 0]
    # The side stands near what it is about, where a tiny model can still repeat it.
    answer = f"{places([item])}, {side_name(side)}: {places(found) or 'nothing'}"
    return f"What is {side} the {item.kind}?", sentence(answer)


def _each(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Ask for all objects, those of a shape, or those of a colour, some of which are not there."""
    attribute, values = rng.choice((("shape", SHAPES), ("shape", SHAPES), ("colour", tuple(COLOURS)), ("", ("",))))
    present = sorted({getattr(item, attribute) for item in scene.objects}) if attribute else values
    value = rng.choice(present if rng.random() < _PRESENT_SHARE else values)
    found = [item for item in scene.objects if not attribute or getattr(item, attribute) == value]
    name = {"shape": value, "colour": f"{value} shape", "": "shape"}[attribute]
    question = rng.choice((f"Where is each {name}?", f"Where are the {plural(name)}?"))
    return question, sentence(places(found) or f"no {name}")
