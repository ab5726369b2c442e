"""Packed rows: images stay where they are, any row is found, and damaged or odd files are refused with their row."""

import io
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cobra.check.config import CheckConfig
from cobra.commands import check
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.packed.columns import reference
from cobra.preprocessing.packed.files import is_packed, packed_files
from cobra.preprocessing.packed.rows import PackedRows, RowImages
from cobra.util.cli import parse
from cobra.util.errors import UserError
from cobra.util.images import BadImageError, read_rgb

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, kind=STRUCT, rows=None, group=4, **columns):
    count = len(images)
    table = {"id": [str(number) for number in range(count)], "conversations": [TURNS] * count} | columns
    pq.write_table(pa.table(table | {"image": pa.array(images, kind)}), path, row_group_size=group)
    return path


def level(path, row, folder=None):
    """The grey level of the picture of a row."""
    image = read_rows(path)[row]["image"]
    return read_rgb(RowImages(path, folder or path.parent).open(image)).getpixel((0, 0))[0]


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.list_(STRUCT), pa.list_(pa.large_binary())], ids=str)
def test_the_image_of_any_row_is_found_in_any_order(tmp_path, kind):
    encoded = [png(10 * number) for number in range(11)]
    struct = pa.types.is_struct(kind) or (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))
    values = [{"bytes": data, "path": f"sqa/{number}.png"} if struct else data for number, data in enumerate(encoded)]
    values[5] = None
    if pa.types.is_list(kind):
        values = [[] if value is None else [value] for value in values]
    path = write(tmp_path / "rows.parquet", values, kind)
    rows = read_rows(path)
    assert [index for index, has in enumerate(rows.has_image) if not has] == [5]
    images = pickle.loads(pickle.dumps(RowImages(path, tmp_path)))  # noqa: S301
    for row in (9, 0, 1, 2, 10, 3, 3):
        assert read_rgb(images.open(rows[row]["image"])).getpixel((0, 0))[0] == 10 * row
    if struct:
        assert rows[3]["image"] == "sqa/3.png#3"


def test_images_are_inside_or_files_of_the_folder(tmp_path):
    (tmp_path / "sqa").mkdir()
    (tmp_path / "sqa" / "1.png").write_bytes(png(90))
    mixed = [{"bytes": png(30), "path": None}, {"bytes": None, "path": "sqa/1.png"}, {"bytes": None, "path": None}]
    path = write(tmp_path / "rows.parquet", mixed)
    assert [row.get("image") for row in read_rows(path)] == ["#0", "sqa/1.png", None]
    assert [level(path, row) for row in (0, 1)] == [30, 90]
    # Known by the statistics alone.
    outside = write(tmp_path / "outside.parquet", [{"bytes": None, "path": "sqa/1.png"}, None])
    assert [row.get("image") for row in read_rows(outside)] == ["sqa/1.png", None]


def test_only_texts_are_kept_beside_the_file(tmp_path):
    noise = [bytes(range(256)) * 4000] * 4
    path = write(tmp_path / "rows.parquet", [{"bytes": data, "path": None} for data in noise])
    read_rows(path)
    kept = sum(file.stat().st_size for file in tmp_path.glob(".rows.parquet*"))
    assert kept < 10_000


def test_ids_stay_texts_and_other_keys_stay(tmp_path):
    columns = {"id": ["00077", "1"], "task": ["a", None], "scores": [[1, 2], None]}
    rows = read_rows(write(tmp_path / "rows.parquet", [None, None], **columns))
    assert rows[0] == {"id": "00077", "task": "a", "scores": [1, 2], "conversations": TURNS}
    assert rows[1] == {"id": "1", "conversations": TURNS}


@pytest.mark.parametrize(
    "turns",
    [json.dumps(TURNS), {"from": ["human", "gpt"], "value": ["What?", "A cat."]}],
    ids=["JSON text", "struct of lists"],
)
def test_turns_in_other_shapes_are_read(tmp_path, turns):
    assert read_rows(write(tmp_path / "a.parquet", [None], conversations=[turns]))[0]["conversations"] == TURNS


def test_questions_and_answers_are_read(tmp_path):
    table = pa.table({"question": ["What?"], "answer": ["A cat."], "image": pa.array([png(7)], pa.binary())})
    pq.write_table(table, tmp_path / "vqa.parquet")
    [row] = read_rows(tmp_path / "vqa.parquet")
    assert [turn["value"] for turn in row["conversations"]] == ["<image>\nWhat?", "A cat."]
    assert level(tmp_path / "vqa.parquet", 0) == 7


def test_a_change_of_the_file_is_seen(tmp_path):
    path = write(tmp_path / "rows.parquet", [None, None])
    before = read_rows(path)
    write(path, [None, None], id=["x", "y"])
    after = read_rows(path)
    assert (before[0]["id"], after[0]["id"]) == ("0", "x")
    assert before.sha256 != after.sha256


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (None, "#3"),
        ("a/b.png", "a/b.png#3"),
        ("/home/x/b.png", "b.png#3"),
        ("../b.png", "b.png#3"),
        ("C:\\b.png", "b.png#3"),
    ],
)
def test_a_reference_leads_nowhere_else(path, shown):
    assert reference(path, 3) == shown


def refused(path):
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_that_cannot_be_trained_on_are_named_by_file_and_row(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "a.parquet", [None] * 3)
    bad = [TURNS, [{"from": "gpt", "value": "?"}, {"from": "gpt", "value": "x"}]]
    write(folder / "b.parquet", [None] * 2, conversations=bad)
    assert f"row 1 of {folder / 'b.parquet'} (id '1') has a turn 1 from 'gpt'" in refused(folder)


def test_several_images_in_a_row_are_refused(tmp_path):
    path = write(tmp_path / "rows.parquet", [[png(1), png(2)]], pa.list_(pa.binary()))
    message = refused(path)
    assert "row 0 of" in message
    assert "has 2 images under `images`; a row has one image" in message


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_files_that_break_off_are_refused(tmp_path, keep):
    path = write(tmp_path / "rows.parquet", [png(1)] * 3, pa.binary())
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is no whole Parquet file" in refused(path)


def test_a_stream_that_breaks_off_is_refused(tmp_path):
    table = pa.table({"conversations": [TURNS] * 2, "image": pa.array([png(1)] * 2, STRUCT.field("bytes").type)})
    for path, opened in (("a.arrow", pa.ipc.new_stream), ("b.arrow", pa.ipc.new_file)):
        with opened(tmp_path / path, table.schema) as writer:
            writer.write_table(table, 1)
        assert level(tmp_path / path, 1) == 1
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(whole[: len(whole) // 2])
        assert "is no whole Arrow file" in refused(tmp_path / path)


def test_damage_within_is_named(tmp_path):
    path = write(tmp_path / "rows.parquet", [png(10 * number) for number in range(4)], pa.binary())
    rows = read_rows(path)
    data = bytearray(path.read_bytes())
    begin = data.index(b"\x89PNG")
    data[begin - 20 : begin + 60] = bytes(80)
    path.write_bytes(data)
    with pytest.raises(BadImageError, match=r"rows\.parquet is damaged|cannot|image"):
        read_rgb(RowImages(path, tmp_path).open(rows[0]["image"]))


def test_bytes_that_are_no_image_are_found_by_check(tmp_path, capsys):
    path = write(tmp_path / "rows.parquet", [png(1), b"no image", png(3)], pa.binary())
    assert check.main(parse(CheckConfig, [str(path)], "data")) == 1
    told = capsys.readouterr().out
    assert "1 file of 1 row missing, outside the folder or not to be read" in told
    assert "#1" in told
    write(path, [png(1), png(2), png(3)], pa.binary())
    assert check.main(parse(CheckConfig, [str(path)], "data")) == 0
    assert f"--dataset.finetune_stage_components {path},{tmp_path}" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(UserError, match="train on it as it is"):
        check.main(parse(CheckConfig, [str(path), "--write", str(tmp_path / "new.json")], "data"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("{}", "names no file under `_data_files`"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "names the file '../a.arrow', which is not in that folder"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "which is not in that folder"),
        ('{"_data_files": [5]}', "names the file None"),
        ("{", "state.json"),
    ],
)
def test_a_folder_of_save_to_disk_that_is_not_whole_is_refused(tmp_path, state, words):
    (tmp_path / "a.arrow").write_bytes(b"")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "state.json").write_text(state)
    assert words in refused(folder)


def test_splits_are_not_mixed(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", [None])
    write(tmp_path / "test-00000-of-00001.parquet", [None])
    with pytest.raises(UserError, match=r"several splits \(test, train\)"):
        packed_files(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert is_packed(saved)
    with pytest.raises(UserError, match=f"name one of them .*{saved / 'train'}"):
        packed_files(saved)


def test_bytes_within_turns_are_refused(tmp_path):
    turns = [[{"from": "human", "value": "a", "image": png(1)}]]
    assert "has bytes within the column conversations" in refused(
        write(tmp_path / "a.parquet", [None], conversations=turns)
    )


def test_an_answer_without_a_question_is_refused(tmp_path):
    pq.write_table(pa.table({"caption": ["A cat."]}), tmp_path / "a.parquet")
    assert "has an answer under 'caption' and no question" in refused(tmp_path / "a.parquet")


def test_empty_files_are_refused(tmp_path):
    assert "is empty" in refused(write(tmp_path / "a.parquet", []))


def test_rows_know_their_number_over_files(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", [png(1)] * 3, pa.binary())
    rows = PackedRows(tmp_path)
    assert len(rows) == 6
    assert [rows.row_name(number) for number in (0, 2, 3, 5)] == [
        f"row {row} of {tmp_path / name}.parquet" for name, row in (("a", 0), ("a", 2), ("b", 0), ("b", 2))
    ]
    assert rows.image(6) is None
