import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobra.demo import scenes
from cobra.demo.scenes import (
    BACKGROUNDS,
    CELL_PX,
    COLOURS,
    GRID,
    IMAGE_PX,
    SHAPES,
    Scene,
    SceneObject,
    random_scene,
    render,
)


@pytest.mark.fault("E13")
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_are_called_what_they_are(background):
    """Both are below middle grey: none is light."""
    scene = Scene((SceneObject(column=2, row=1, shape="star", colour="blue"),), background, 0)
    assert max(render(scene).getpixel((0, 0))) < 128 and background in ("grey", "dark")


def test_the_same_seed_gives_the_same_scenes_and_pixels():
    first, second = (random_scene(random.Random(3), "train") for _ in range(2))
    assert first == second
    assert render(first).tobytes() == render(second).tobytes()
    assert random_scene(random.Random(4), "train") != first


@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from(["train", "held-out"]))
def test_a_scene_is_of_its_split_and_its_objects_lie_in_distinct_cells(seed, max_objects, split):
    scene = random_scene(random.Random(seed), split, max_objects)
    assert scene.split == split
    assert 1 <= len(scene.objects) <= max_objects
    assert len({(item.row, item.column) for item in scene.objects}) == len(scene.objects)
    assert list(scene.objects) == sorted(scene.objects)


def test_the_split_depends_on_content_alone_and_holds_out_a_tenth():
    item = SceneObject(column=0, row=1, shape="star", colour="red")
    assert len({Scene((item,), back, seed).split for back in BACKGROUNDS for seed in range(5)}) == 1
    rng = random.Random(0)
    scenes = {random_scene(rng, "train").content for _ in range(2000)}
    held_out = {random_scene(rng, "held-out").content for _ in range(500)}
    assert not scenes & held_out
    kinds = [
        Scene((SceneObject(column, row, shape, colour),), "grey", 0).split
        for column in range(GRID)
        for row in range(GRID)
        for shape in SHAPES
        for colour in COLOURS
    ]
    assert 0.05 < kinds.count("held-out") / len(kinds) < 0.15


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variation", range(5))
def test_an_object_lies_within_its_cell_and_has_its_colour(shape, variation):
    scene = Scene((SceneObject(column=2, row=1, shape=shape, colour="blue"),), "grey", variation)
    image = render(scene)
    assert image.size == (IMAGE_PX, IMAGE_PX) and image.mode == "RGB"
    pixels = np.asarray(image, dtype=int)
    background = pixels[0, 0]
    changed = np.abs(pixels - background).sum(2) > 0
    rows, columns = np.nonzero(changed)
    assert rows.min() >= CELL_PX and rows.max() < 2 * CELL_PX
    assert columns.min() >= 2 * CELL_PX and columns.max() < 3 * CELL_PX
    # Smooth edges: some pixels are neither background nor full colour.
    distinct = {tuple(pixel) for pixel in pixels[changed]}
    assert len(distinct) > 2
    centre = pixels[CELL_PX + CELL_PX // 2, 2 * CELL_PX + CELL_PX // 2]
    assert np.abs(centre - COLOURS["blue"]).max() <= 8


def test_shapes_differ_by_more_than_their_jitter():
    def mean_image(shape):
        scenes = [Scene((SceneObject(1, 1, shape, "red"),), "grey", seed) for seed in range(20)]
        return np.mean([np.asarray(render(scene), dtype=float) for scene in scenes], axis=0)

    means = {shape: mean_image(shape) for shape in SHAPES}
    for shape in SHAPES:
        single = np.asarray(render(Scene((SceneObject(1, 1, shape, "red"),), "grey", 99)), dtype=float)
        distances = {other: np.linalg.norm(single - mean) for other, mean in means.items()}
        assert min(distances, key=distances.__getitem__) == shape


def test_the_widest_object_cannot_leave_its_cell():
    widest = max(max(abs(x), abs(y)) for outline in scenes._OUTLINES.values() for x, y in outline)
    assert widest * scenes._RADIUS_PX[1] + scenes._SHIFT_PX <= CELL_PX / 2
