"""Which rows are written where: sources, samples, the holdout, what is rejected."""

import json
from collections import Counter

import pytest
from small_publication import NAMES, Publication, annotation, rejected, turns

from cobra.preprocessing.datasets.rows import source_of
from cobra.preprocessing.llava_cot import PrepareConfig, prepare


def prepared(root, **flags):
    return prepare(PrepareConfig(root, download=False, **flags))


def holdout(folder):
    return json.loads((folder / "llava_cot_100k_holdout.json").read_text())


@pytest.mark.parametrize("workers", [1, 2])
def test_no_image_is_in_both_parts_by_its_bytes(tmp_path, workers):
    made = Publication(40)
    for number in range(40):
        path = NAMES[number % 4].format(number)
        made.add({"id": f"again {number}", "image": path, "conversations": turns("Again?", str(number))})
        # The same picture under another name.
        copy = NAMES[number % 4].format(1000 + number)
        made.images[copy] = made.images[path]
        made.add({"id": f"copy {number}", "image": copy, "conversations": turns("Q?", str(number))})
    folder = made.write(tmp_path)
    report = prepared(tmp_path, holdout=30, num_workers=workers)
    kept, held_out = annotation(folder), holdout(folder)
    assert (len(kept), len(held_out)) == (report.rows_written, report.rows_held_out) == (90, 30)
    pictures = [{(folder / row["image"]).read_bytes() for row in rows} for rows in (kept, held_out)]
    assert not pictures[0] & pictures[1]
    assert not {row["id"] for row in kept} & {row["id"] for row in held_out}
    # In the order of the file, and in proportion to the sources.
    order = {json.loads(line)["id"]: number for number, line in enumerate(made.lines)}
    assert [order[row["id"]] for row in kept] == sorted(order[row["id"]] for row in kept)
    assert min(Counter(source_of(row) for row in held_out).values()) >= 6


def test_default_holdout_is_a_hundredth_and_none_leaves_no_file(tmp_path):
    folder = Publication(200).write(tmp_path)
    assert prepared(tmp_path).rows_held_out == len(holdout(folder)) == 2
    assert prepared(tmp_path, holdout=0).rows_written == 200
    assert not (folder / "llava_cot_100k_holdout.json").exists()


def test_sources_and_samples(tmp_path):
    made = Publication(200)
    folder = made.write(tmp_path)
    report = prepared(tmp_path, sources=("sqa", "coco"), max_samples=20, holdout=4)
    kept = annotation(folder) + holdout(folder)
    assert Counter(source_of(row) for row in kept) == {"sqa": 10, "coco": 10}
    assert report.rows_written == 16 and report.left_out == {"sqa": 40, "coco": 40, "chartqa": 50, "geoqa+": 50}
    assert report.rows_read == 200 and not report.rejected
    first = annotation(folder)
    prepared(tmp_path, sources=("sqa", "coco"), max_samples=20, holdout=4, seed=8)
    assert annotation(folder) != first
    prepared(tmp_path, sources=("sqa", "coco"), max_samples=20, holdout=4)
    assert annotation(folder) == first


def test_rows_whose_images_are_missing_are_replaced_in_the_draw(tmp_path):
    made = Publication(80)
    for path in [path for path in made.images if path.startswith("sqa")][:15]:
        del made.images[path]
    folder = made.write(tmp_path)
    report = prepared(tmp_path, max_samples=16, holdout=0)
    # Five of the twenty images of sqa are left: more than its four places.
    assert Counter(source_of(row) for row in annotation(folder)) == {"sqa": 4, "chartqa": 4, "coco": 4, "geoqa+": 4}
    assert report.rejected == {"missing image": len(rejected(folder))}


def test_repeated_rows_and_ids(tmp_path):
    made = Publication(8)
    row = json.loads(made.lines[0])
    made.add(row)
    made.add({**row, "conversations": turns("Other?", "Yes")})
    missing = {"id": "x", "image": "sqa/none.png", "conversations": turns("Q?", "A")}
    made.add(missing)
    made.add(missing)
    folder = made.write(tmp_path)
    report = prepared(tmp_path)
    assert report.duplicate_ids == 1
    assert {line: entry["reason"] for line, entry in rejected(folder).items()} == {
        9: "duplicate: of line 1",
        11: "missing image: sqa/none.png",
        12: "missing image: sqa/none.png",
    }
    # One of the rows is a duplicate, which does not count: 2 of 11 are rejected.
    assert report.rejected_share == pytest.approx(2 / 11)


def test_images_are_decoded_only_as_far_as_asked(tmp_path):
    made = Publication(8)
    path = NAMES[1].format(1)
    made.images[path] = made.images[path][:-400]
    made.write(tmp_path)
    assert [prepared(tmp_path, verify=mode).unreadable_images for mode in ("none", "fast", "full")] == [0, 0, 1]
