"""What the keys of rows mean: where the image is, what is refused, and what is told of rows that are taken."""

import json
import shutil
from pathlib import Path

import pytest
from example_rows import PAIR, TEXT_PAIR, first_pixel, write_rows

import cobra.models.tiny
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import ZephyrChatPromptBuilder
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.datasets.row_keys import REMARKS, image_of, remarks_of, unread_problem, with_image
from cobra.preprocessing.datasets.rows import RowError, source_of
from cobra.preprocessing.llava_cot.rows.raw_row import check_row
from cobra.util.errors import UserError

FAULTS = Path(__file__).parents[1] / "faults"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(cobra.models.tiny.__file__).parent, 512)


@pytest.fixture
def opened(tmp_path, tokenizer):
    """Open the rows of a folder of tests/faults, of which a copy is read."""

    def open_rows(name, kind=FinetuneDataset):
        folder = shutil.copytree(FAULTS / name, tmp_path / "rows")
        options = [ZephyrChatPromptBuilder] if kind is FinetuneDataset else []
        return kind(folder / "rows.json", folder / "images", first_pixel, tokenizer, *options)

    return open_rows


def published(name):
    """The rows of a folder of tests/faults as prepare takes them, or why it does not."""
    outcomes = []
    for number, value in enumerate(json.loads((FAULTS / name / "rows.json").read_text()), 1):
        try:
            outcomes.append(check_row(value, number))
        except RowError as error:
            outcomes.append(str(error))
    return outcomes


ABSENT = [None, "", "  \n", [], [None], [""], {}, float("nan"), [float("nan")]]


@pytest.mark.fault("F11")
@pytest.mark.parametrize("key", ["image", "images"])
@pytest.mark.parametrize("value", ABSENT, ids=repr)
def test_what_tables_put_where_there_is_nothing_is_no_image(key, value):
    row = {"id": 1, key: value, "conversations": TEXT_PAIR}
    assert image_of(row) is None
    assert with_image(row, None) == {"id": 1, "conversations": TEXT_PAIR}
    assert source_of(row) == "(text only)" and check_row(row, 1).image is None


@pytest.mark.fault("F11")
@pytest.mark.parametrize("row", [{"image": "a.png"}, {"image": ["a.png"]}, {"images": ["a.png"]}, {"images": "a.png"}])
def test_one_path_is_the_image_in_each_spelling(row):
    row |= {"id": 1, "conversations": PAIR}
    assert image_of(row) == check_row(row, 1).image == "a.png"
    assert with_image(row, "a.png") == {"id": 1, "image": "a.png", "conversations": PAIR}
    assert unread_problem(row, "a.png") is None


@pytest.mark.fault("F2")
def test_a_list_beside_its_own_path_is_one_image():
    assert image_of({"image": "a.png", "images": ["a.png"]}) == "a.png"
    assert image_of({"image": None, "images": ["a.png", None]}) == "a.png"
    with pytest.raises(ValueError, match="another under `images`; a row has one image"):
        image_of({"image": "a.png", "images": ["b.png"]})


@pytest.mark.fault("F11")
@pytest.mark.parametrize("name", ["null", "empty", "emptylist", "nan", "onelist"])
def test_text_rows_with_an_empty_image_are_text(opened, name):
    dataset = opened(f"image-null/{name}")
    rows = json.loads((FAULTS / "image-null" / name / "rows.json").read_text())
    odd = [row["image"] != "a.png" for row in rows]
    assert any(odd) and not all(odd)
    expected = [name == "onelist" or not is_odd for is_odd in odd]
    assert dataset.examples.has_image.tolist() == expected
    assert [has_image for has_image, _ in dataset.get_modality_lengths()] == expected
    assert [dataset[index]["pixel_values"] is not None for index in range(len(dataset))] == expected
    assert [row.image for row in published(f"image-null/{name}")] == ["a.png" if has else None for has in expected]


@pytest.mark.fault("F2")
@pytest.mark.parametrize("name", ["images-plural", "images-some"])
def test_a_list_of_one_path_under_images_is_used(opened, name):
    dataset = opened(name)
    assert dataset.examples.has_image.all()
    assert all(dataset[index]["pixel_values"] is not None for index in range(len(dataset)))
    assert {row.image for row in published(name)} == {"a.png"}


NEAR = ["Image", "image_file", "image_path", "img", "pixel", "video"]


@pytest.mark.fault("F2")
@pytest.mark.parametrize("key", NEAR)
@pytest.mark.parametrize("kind", [FinetuneDataset, AlignDataset])
def test_a_picture_under_another_key_is_refused_by_name(opened, key, kind):
    with pytest.raises(
        UserError, match=rf"row 0 \(id 'p0'\) of .*rows.json has a picture under `{key}` .*call the key"
    ):
        opened(f"images-plural/near-{key}", kind)
    reasons = published(f"images-plural/near-{key}")
    assert reasons and all(f"key that is not read: the row has a picture under `{key}`" in text for text in reasons)


PICTURES = {
    "imagePath": "folder/a",
    "input_image": "x",
    "image_url": "http://127.0.0.1/a",
    "image_0": "x",
    "pixel_values": [1],
    "pictures": ["a", "b"],
    "videos": ["a.mp4"],
    "audio": {"path": "a.wav"},
    "file_name": "train/a.JPG",
    "path": "a.webp",
    "content": "data:image/png;base64,AAAA",
}
OTHERS = {
    "image_id": "000000000042",
    "image_width": 640,
    "image_caption": "a cat",
    "n_images": 0,
    "video_id": "x",
    "framework": "torch",
    "model": "gpt4",
    "source": "sqa/train",
    "id": "coco/1.jpg",
    "image_path": None,
    "videos": [],
    "metadata": {"image": "a.png"},
}


@pytest.mark.fault("F2")
@pytest.mark.parametrize("key", PICTURES)
def test_pictures_are_told_by_key_or_value(key):
    row = {"conversations": TEXT_PAIR, key: PICTURES[key]}
    assert f"`{key}`" in unread_problem(row, None)
    # Beside an image it is told, not refused.
    assert unread_problem(row, "a.png") is None
    assert [text for bit, text in enumerate(REMARKS) if remarks_of(row, "a.png") >> bit & 1] == [
        "a second picture, video or sound, which is not trained on"
    ]


@pytest.mark.fault("F2")
@pytest.mark.parametrize("key", OTHERS)
def test_other_keys_pass_quietly(key):
    row = {"conversations": TEXT_PAIR, key: OTHERS[key]}
    assert unread_problem(row, None) is None
    assert remarks_of(row, None) == remarks_of(row, "a.png") == 0


def test_a_key_of_any_length_is_looked_at_once():
    row = {"conversations": TEXT_PAIR, "image" + "filename_" * 20_000 + "!": "x", "a_" * 100_000: "x"}
    assert unread_problem(row, None) is None


@pytest.mark.fault("F2")
def test_pairs_of_preferences_are_refused(tmp_path):
    turn = {"from": "gpt", "value": "A cat."}
    row = {"id": "x", "conversations": TEXT_PAIR, "chosen": turn, "rejected": turn}
    with pytest.raises(UserError, match=r"\(id 'x'\) .*`chosen` and `rejected`; pairs are not trained on"):
        read_rows(write_rows(tmp_path, [row]))


@pytest.mark.fault("F2")
def test_what_is_not_trained_on_is_counted(opened):
    dataset = opened("system-key")
    count = len(dataset)
    assert dataset.examples.remark_lines() == [f"{count} of {count} rows have `system`, which is not trained on"]
    assert all(row.remarks == 1 for row in published("system-key"))


@pytest.mark.fault("F2")
def test_a_placeholder_without_any_image_is_refused_and_with_some_is_told(tmp_path, tokenizer):
    (tmp_path / "images").mkdir()

    def open_rows(*rows):
        path = write_rows(tmp_path, list(rows))
        return FinetuneDataset(path, tmp_path / "images", first_pixel, tokenizer, ZephyrChatPromptBuilder)

    asking, text = {"id": "a", "conversations": PAIR}, {"id": "t", "conversations": TEXT_PAIR}
    with pytest.raises(UserError, match=r"row 1 \(id 'a'\) .*<image> in a question, and no row .*image"):
        open_rows(text, asking)
    rows = open_rows(text, asking, asking | {"id": "b", "image": "a.png"}).examples
    assert rows.remark_lines() == [
        "1 of 3 rows have <image> in a question and no `image`; it is taken out, and they are trained on as text"
    ]


@pytest.mark.fault("F4")
@pytest.mark.parametrize("kind", [FinetuneDataset, AlignDataset])
def test_rows_with_nothing_to_learn_are_refused(opened, kind):
    with pytest.raises(UserError, match=r"row 0 \(id 0\) of .* has a question and no answer"):
        opened("no-answer", kind)


@pytest.mark.fault("F4")
@pytest.mark.parametrize("kind", [FinetuneDataset, AlignDataset])
def test_answers_that_are_all_empty_are_refused(opened, kind):
    with pytest.raises(UserError, match=r"every answer in .*rows.json is empty"):
        opened("empty-answer", kind)


@pytest.mark.fault("F4")
@pytest.mark.parametrize("answer", ["", " \n", "<image>"])
def test_some_empty_answers_are_told(tmp_path, tokenizer, answer):
    empty = {"conversations": [TEXT_PAIR[0], {"from": "gpt", "value": answer}]}
    rows = read_rows(write_rows(tmp_path, [empty, {"conversations": TEXT_PAIR}]))
    assert rows.answers.tolist() == [0, 1]
    assert rows.remark_lines() == ["1 of 2 rows have an empty answer, which teaches to say nothing"]


@pytest.mark.fault("F4")
def test_questions_beyond_the_limit_leave_nothing_to_learn(opened):
    with pytest.raises(UserError, match=r"nothing can be learned from .*512 tokens.*--model.llm_max_length"):
        opened("long-question")


def told(row, image=None):
    return [text for bit, text in enumerate(REMARKS) if remarks_of(row, image) >> bit & 1]


@pytest.mark.fault("F2")
@pytest.mark.parametrize("key", ["image", "images", "image_path", "attachment"])
def test_a_picture_in_a_turn_is_refused_by_name(tmp_path, key):
    turns = [TEXT_PAIR[0] | {key: "a.png"}, TEXT_PAIR[1]]
    row = {"id": "x", "conversations": turns}
    with pytest.raises(UserError, match=rf"\(id 'x'\) .* has a picture under `{key}` of a turn and none under `image`"):
        read_rows(write_rows(tmp_path, [row]))
    with pytest.raises(RowError, match=f"a picture under `{key}` of a turn"):
        check_row(row, 1)
    assert "a second picture" in told(row, "a.png")[1]


@pytest.mark.fault("F2")
@pytest.mark.parametrize(
    ("key", "called"),
    [
        ("System", "system"),
        ("system_prompt", "system"),
        ("systemPrompt", "system"),
        ("instruction", "instruction"),
        ("rejected_response", "rejected"),
        ("sample_weight", "weight"),
    ],
)
def test_fields_of_other_trainers_are_told_in_every_spelling(key, called):
    assert told({"conversations": TEXT_PAIR, key: "x"}) == [f"`{called}`, which is not trained on"]


@pytest.mark.fault("F2")
def test_what_turns_hold_beside_their_text_is_told():
    turns = [TEXT_PAIR[0], TEXT_PAIR[1] | {"loss": False}]
    assert told({"conversations": turns}) == [
        "turns with more than `from` and `value`, as `loss` or `weight`, which is not read"
    ]


def turns_of(question, answer="A cat."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.fault("F2")
def test_placeholders_of_more_images_than_a_row_has_are_told():
    twice = turns_of("<image>\n<image>\nWhich is larger?")
    later = turns_of("<image>\nWhat?") + turns_of("<image>\nAnd here?")
    in_answer = turns_of("<image>\nWhat?", "As in <image>.")
    for turns in (twice, later, in_answer):
        assert [text[:38] for text in told({"conversations": turns}, "a.png")] == [
            "<image> in an answer, or more than onc"
        ]
    assert told({"conversations": turns_of("What?\n<image>") + turns_of("And?")}, "a.png") == []


@pytest.mark.fault("F2")
@pytest.mark.parametrize(
    "name",
    ["<img>", "<IMAGE>", "<image_1>", "<ImageHere>", "<image 2>", "<video>", "[IMG]", '<img src="a">', "![](a.png)"],
)
def test_other_names_of_the_placeholder_are_told(name):
    for image in (None, "a.png"):
        (only,) = told({"conversations": turns_of(f"{name}\nWhat?")}, image)
        assert only.startswith("a picture's place in a question that is not called <image>")


@pytest.mark.fault("F2")
@pytest.mark.parametrize("text", ["<imagery>", "a[i]", "x < image > y", "<b>", "[image of a cat]", "!(a)", "![a] (b)"])
def test_other_brackets_are_no_placeholders(text):
    assert told({"conversations": turns_of(text)}) == []


@pytest.mark.fault("F4", "F16")
@pytest.mark.parametrize(
    "answer", ["", " \u00a0\n", "\u200b\ufeff", "<image>", "<|endoftext|>", "<|padding|> <|endoftext|>"]
)
def test_answers_that_say_nothing_are_empty_to_training_and_prepare(tmp_path, answer):
    row = {"id": "x", "conversations": turns_of("What?", answer)}
    assert read_rows(write_rows(tmp_path, [row])).answers.tolist() == [0]
    with pytest.raises(RowError, match="turn 2 is an empty answer"):
        check_row(row, 1)
