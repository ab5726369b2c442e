"""Example pictures to begin a talk with: held-out scenes of one, two and three objects, rendered on demand."""

import io
import random
from typing import NamedTuple

from cobra.demo.captions import canonical_caption
from cobra.demo.scenes import MAX_OBJECTS, Scene, random_scene, render


class Example(NamedTuple):
    """A picture that no model of the demonstration was trained on."""

    caption: str
    """Canonical caption: the right answer to a request for one."""
    png: bytes


def example_pictures() -> list[Example]:
    """Render the examples; they are the same every time."""
    rng = random.Random("examples")
    scenes: dict[int, Scene] = {}
    while len(scenes) < MAX_OBJECTS:
        scene = random_scene(rng, "held-out")
        scenes.setdefault(len(scene.objects), scene)
    examples = []
    for _, scene in sorted(scenes.items()):
        data = io.BytesIO()
        render(scene).save(data, "PNG")
        examples.append(Example(canonical_caption(scene), data.getvalue()))
    return examples
