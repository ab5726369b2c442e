"""Parts of an archive as one stream, some of them gone."""

import pytest

from cobra.preprocessing.llava_cot.archive.joined_parts import JoinedParts, PartGone, PartsRecord, find_archive
from cobra.util.errors import UserError


@pytest.fixture
def paths(tmp_path):
    names = [tmp_path / f"image.zip.part-a{letter}" for letter in "abc"]
    for path, content in zip(names, (b"0123", b"4567", b"89"), strict=True):
        path.write_bytes(content)
    return names


def test_a_part_that_is_gone_is_named_and_the_others_are_read(paths):
    paths[1].unlink()
    with JoinedParts(paths, [4, 4, 2]) as joined:
        assert joined.size == 10 and joined.read(4) == b"0123"
        with pytest.raises(PartGone, match="image.zip.part-ab is not there"):
            joined.read(1)
        joined.seek(8)
        assert joined.read() == b"89"


def test_one_part_is_open_at_a_time_so_that_deleted_ones_free_their_space(paths, tmp_path):
    import os

    def open_parts():
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return [os.readlink(link) for link in links if os.path.islink(link) and "image.zip" in os.readlink(link)]

    with JoinedParts(paths) as joined:
        assert open_parts() == []
        joined.read(2)
        paths[0].unlink()
        joined.seek(4)
        joined.read(2)
        assert open_parts() == [str(paths[1])]
    assert open_parts() == []


def test_parts_that_were_consumed_are_part_of_the_archive(paths, tmp_path):
    record = PartsRecord({path.name: path.stat().st_size for path in paths}, 9, {paths[0].name})
    record.save(tmp_path)
    assert PartsRecord.load(tmp_path) is None, "all parts are there"
    paths[0].unlink()
    assert PartsRecord.load(tmp_path) == record
    assert find_archive(tmp_path) == paths
    paths[2].unlink()
    with pytest.raises(UserError, match="up to image.zip.part-ac, but image.zip.part-ac is missing.*prepare_llava_cot"):
        find_archive(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sizes": {}, "directory_start": 0, "consumed": 3}'])
def test_a_record_that_is_not_one_is_named(tmp_path, content):
    (tmp_path / ".prepare").mkdir()
    (tmp_path / ".prepare" / "parts.json").write_text(content)
    with pytest.raises(UserError, match=r"parts\.json.*Delete the folder \.prepare"):
        find_archive(tmp_path)
