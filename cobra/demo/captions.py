"""Captions of scenes: one canonical wording to learn from, and several human-like wordings to be scored against."""

import random
from collections import Counter
from collections.abc import Sequence

from cobra.demo.scenes import Scene, SceneObject

COUNT_WORDS = ("no", "one", "two", "three")
REFERENCES_PER_SCENE = 5

_PLACES = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))


def sentence(phrase: str) -> str:
    """Return a phrase with a capital letter and a full stop."""
    return f"{phrase[:1].upper()}{phrase[1:]}."


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def cell_name(item: SceneObject) -> str:
    """Return the name of an object's cell, e.g. `top left`."""
    return _PLACES[item.row][item.column]


def groups(objects: Sequence[SceneObject]) -> list[tuple[int, SceneObject]]:
    """Return how often each kind occurs, with its first object, in the objects' order."""
    first = {item.kind: item for item in reversed(objects)}
    return [(count, first[kind]) for kind, count in Counter(item.kind for item in objects).items()]


def listing(objects: Sequence[SceneObject]) -> str:
    """Name objects in their order, equal ones together: `two red circles, a blue square and a green cross`."""
    names = [
        f"a {item.kind}" if count == 1 else f"{COUNT_WORDS[count]} {item.colour} {plural(item.shape)}"
        for count, item in groups(objects)
    ]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def side_name(side: str) -> str:
    """Return the name of a side as answers have it: `left` for `left of`."""
    return side.removesuffix(" of")


def places(objects: Sequence[SceneObject]) -> str:
    """Name objects in the order given, each with its place after it: `red circle top left, blue square right`."""
    return ", ".join(f"{item.kind} {cell_name(item)}" for item in objects)


def canonical_caption(scene: Scene) -> str:
    """Return the one wording that the models learn: every object with its place, from left to right and top to bottom.

    Captions that name what is there and not where leave a model blind to places: fine-tuned on questions about them,
    it answers at chance.
    """
    *most, last = (f"a {item.kind} at the {cell_name(item)}" for item in scene.objects)
    return sentence(f"{', '.join(most)} and {last}" if most else last)


def reference_captions(rng: random.Random, scene: Scene) -> list[str]:
    """Draw five different captions of a scene, as five people might word them."""
    objects = scene.objects
    listed = listing(objects)
    count = COUNT_WORDS[len(objects)]
    pool = [
        canonical_caption(scene),
        sentence(f"there {'is' if groups(objects)[0][0] == 1 else 'are'} {listed}"),
        sentence(f"a picture of {listed}"),
        sentence(f"{listed} on a {scene.background} background"),
        sentence(f"an image of {listed} on a {scene.background} background"),
        sentence(f"this picture shows {listed}"),
        sentence(f"{count} shape{'' if len(objects) == 1 else 's'}: {listed}"),
    ]
    if len(objects) == 1:
        kind, place = objects[0].kind, cell_name(objects[0])
        pool += [sentence(f"a single {kind} at the {place} of the image"), sentence(f"the {kind} is at the {place}")]
    if len(objects) == 2 and len(groups(objects)) == 2:
        pool += _relations(*objects)
    # A relation may be worded as in the canonical caption: then the next caption of the pool steps in.
    drawn = rng.sample(pool, REFERENCES_PER_SCENE)
    return list(dict.fromkeys(drawn + pool))[:REFERENCES_PER_SCENE]


def _relations(first: SceneObject, second: SceneObject) -> list[str]:
    """Word the relations of two objects of which `first` is not right of `second`."""
    captions = []
    if first.column < second.column:
        captions += [
            f"a {first.kind} to the left of a {second.kind}",
            f"a {second.kind} to the right of a {first.kind}",
        ]
    if first.row != second.row:
        upper, lower = sorted((first, second), key=lambda item: item.row)
        captions += [f"a {upper.kind} above a {lower.kind}", f"a {lower.kind} below a {upper.kind}"]
    return [sentence(caption) for caption in captions]
