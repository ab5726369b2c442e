"""The first pass: what it keeps of the rows."""

import json

import pytest
from small_publication import Publication, turns

from cobra.preprocessing.llava_cot.rows.scan import scan_rows
from cobra.util.errors import UserError


@pytest.fixture
def made(tmp_path):
    publication = Publication(4)
    row = json.loads(publication.lines[0])
    publication.add(None, b"{")
    publication.add(None, publication.lines[0])
    publication.add({**row, "conversations": turns("Other?", "yes")})
    publication.add({**row, "id": 99})
    publication.add({**row, "conversations": turns("Q?", "\ud800")})
    publication.add({"conversations": turns("Q?", "A")})
    publication.add({"conversations": turns("Q?", "A")})
    return publication.write_rows(tmp_path) / "train.jsonl"


def test_columns(made):
    scan = scan_rows(made, 7)
    # Line 5 is no JSON, line 9 holds half a surrogate pair.
    assert scan.lines.tolist() == [1, 2, 3, 4, 6, 7, 8, 10, 11]
    assert scan.first_lines.tolist() == [1, 2, 3, 4, 1, 7, 8, 10, 10]
    assert scan.repeats_id.tolist() == [False] * 5 + [True] + [False] * 3
    assert [scan.source_names[source] for source in scan.sources] == [
        "sqa", "chartqa", "coco", "geoqa+", "sqa", "sqa", "sqa", "(text only)", "(text only)",
    ]  # fmt: skip
    assert scan.images.tolist() == [0, 1, 2, 3, 0, 0, 0, -1, -1]
    assert len(scan.image_paths) == 4


def test_draws_follow_content_and_seed(made):
    first, again, other = (scan_rows(made, seed).draws for seed in (7, 7, 8))
    assert (first == again).all() and (first != other).all()
    assert first[0] == first[4] and len(set(first.tolist())) == 7


def test_sources(made):
    scan = scan_rows(made, 7)
    assert scan.of_sources(()).all()
    assert scan.of_sources(("chartqa", "coco")).tolist() == [False, True, True] + [False] * 6
    with pytest.raises(UserError, match=r"--sources names vqa, .*: \(text only\), chartqa, coco, geoqa\+, sqa"):
        scan.of_sources(("sqa", "vqa"))
