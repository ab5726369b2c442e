"""Data in the forms that people bring: read as they are, or refused with one command that writes rows."""

import json
import os
import re
import shlex

import pytest
import torch
from example_rows import first_pixel
from PIL import Image

from cobra.check.config import CheckConfig
from cobra.commands import check
from cobra.conf import DatasetConfig
from cobra.preprocessing.datasets import FinetuneDataset
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.preprocessing.materialize import find_components
from cobra.training.config import PretrainConfig
from cobra.training.row_checks import check_images
from cobra.util.cli import parse
from cobra.util.distributed import World
from cobra.util.errors import UserError

pytestmark = pytest.mark.fault("E8")

QUESTION, ANSWER = "What is it?", "A cat."
ROW = {
    "image": "a.png",
    "conversations": [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}],
}
USER, ASSISTANT = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
IMAGE_PART, TEXT_PART = {"type": "image", "image": "a.png"}, {"type": "text", "text": QUESTION}
# Name of the file, and its text.
FORMS = {
    "csv": ("data.csv", f"image,question,answer\na.png,{QUESTION},{ANSWER}\n"),
    "csv of Excel": ("data.csv", f"\ufeffImage;Question;Answer\r\na.png;{QUESTION};{ANSWER}\r\n"),
    "csv from Windows": ("data.csv", f'file_name,Prompt,Response\n.\\a.png,"{QUESTION}",{ANSWER}\n'),
    "tsv": ("data.tsv", f"image_path\tinstruction\toutput\na.png\t{QUESTION}\t{ANSWER}\n"),
    "a table of another name": ("data.txt", f"image,question,answer\na.png,{QUESTION},{ANSWER}\n"),
    "question and answer": ("rows.json", json.dumps([{"image": "a.png", "question": QUESTION, "answer": ANSWER}])),
    "instruction": ("rows.json", json.dumps([{"image": "a.png", "instruction": QUESTION, "output": ANSWER}])),
}
# Those that training reads as they are.
READ_FORMS = {
    "messages": ("rows.json", json.dumps([{"image": "a.png", "messages": [USER, ASSISTANT]}])),
    "messages, lines": ("rows.jsonl", json.dumps({"images": ["a.png"], "messages": [USER, ASSISTANT]}) + "\n"),
    "messages of parts": (
        "rows.json",
        json.dumps([{"messages": [USER | {"content": [IMAGE_PART, TEXT_PART]}, ASSISTANT]}]),
    ),
    "conversations of roles": ("rows.json", json.dumps([{"image": "a.png", "conversations": [USER, ASSISTANT]}])),
    "conversations of user and assistant": (
        "rows.json",
        json.dumps(
            [
                {
                    "image": "a.png",
                    "conversations": [{"from": "user", "value": QUESTION}, {"from": "assistant", "value": ANSWER}],
                }
            ]
        ),
    ),
    "prompt and completion": (
        "rows.jsonl",
        json.dumps({"images": ["a.png"], "prompt": [USER], "completion": [ASSISTANT]}) + "\n",
    ),
}


@pytest.fixture
def my(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (48, 32), "red").save(tmp_path / "images" / "a.png")
    return tmp_path


def components(file, images):
    return DatasetConfig.get_choice_class("custom")(finetune_stage_components=(file, images))


def run(*arguments):
    return check.main(parse(CheckConfig, arguments, "data"))


def refusal(file, images):
    """The message with which training refuses, and the command in it."""
    with pytest.raises(UserError) as error:
        read_rows(find_components("finetune", components(file, images))[0])
    message = str(error.value)
    assert "\n" not in message
    command = re.search(r"cobra-vlm check (.*)", message)
    return message, shlex.split(command[1])


@pytest.mark.parametrize("form", FORMS)
def test_the_command_that_a_refusal_names_writes_rows(my, form, capsys):
    name, content = FORMS[form]
    (my / name).write_text(content)
    message, arguments = refusal(my / name, my / "images")
    assert str(my / name) in message
    # Before anything is written, it is a problem, with the same command.
    assert run(str(my / name)) == 1
    assert shlex.join(["cobra-vlm", "check", *arguments]) in capsys.readouterr().out
    assert run(*arguments) == 0
    [row] = read_rows(find_components("finetune", components(arguments[-1], my / "images"))[0])
    assert {key: row[key] for key in ROW} == ROW
    assert run(arguments[-1]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image\na.png\n", "data.csv has the columns image, and none with the answers"),
        ("image,image,answer\na.png,b.png,A cat.\n", "data.csv has the columns image more than once"),
        ("image,question,answer\n", r"data.csv \(a table\) holds no row"),
    ],
)
def test_tables_without_answers_or_rows_are_refused(my, content, message):
    (my / "data.csv").write_text(content)
    for arguments in ((), ("--write", str(my / "new.json"))):
        with pytest.raises(UserError, match=message):
            run(str(my / "data.csv"), *arguments)
    assert not (my / "new.json").exists()


def test_questions_and_answers_that_are_no_texts_are_not_written_as_such(my, capsys):
    rows = [{"prompt": [USER], "completion": ANSWER}, {"instruction": QUESTION, "input": {"a": 1}, "output": ANSWER}]
    (my / "rows.json").write_text(json.dumps(rows))
    assert run(str(my / "rows.json"), "--write", str(my / "new.json")) == 1
    told = capsys.readouterr().out
    assert "2 bad turn" in told and "where the text of a question" in told and "no row is left to be written" in told
    assert not (my / "new.json").exists()


@pytest.mark.parametrize("form", READ_FORMS)
def test_messages_are_read_as_they_are_and_can_be_written_as_rows(my, form):
    name, content = READ_FORMS[form]
    (my / name).write_text(content)
    [row] = read_rows(find_components("finetune", components(my / name, my / "images"))[0])
    assert {key: row[key] for key in ROW} == ROW
    assert run(str(my / name)) == 0
    assert run(str(my / name), "--write", str(my / "new.json")) == 0
    assert read_rows(my / "new.json")[0] == row


def test_captioned_images_become_rows(my, capsys):
    (my / "images" / "a.txt").write_text(f"{ANSWER}\n")
    _, arguments = refusal(my / "images", my / "images")
    assert run(*arguments, "--question", QUESTION) == 0
    assert read_rows(my / "images" / "rows.json")[0].items() >= ROW.items()
    # Once more: the rows that lie there are the data.
    assert run(str(my / "images")) == 0
    assert refusal_of_folder(my / "images").endswith(f"Name the file in it: {my / 'images' / 'rows.json'}")


def refusal_of_folder(folder):
    with pytest.raises(UserError) as error:
        find_components("finetune", components(folder, folder))
    return str(error.value)


@pytest.mark.parametrize("name", ["rows.json", "rows.txt", "rows", "rows.jsonl"])
def test_json_lines_are_read_under_any_name(my, name):
    (my / name).write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
    assert list(read_rows(my / name)) == [ROW, ROW]
    assert run(str(my / name)) == 0


def test_absolute_paths_inside_the_folder_are_taken_and_written_relative(my):
    (my / "rows.json").write_text(json.dumps([ROW | {"image": str(my / "images" / "a.png")}]))
    assert run(str(my), "--write", str(my / "new.jsonl")) == 0
    assert list(read_rows(my / "new.jsonl")) == [ROW]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,question\na.png,Hm?\n", ["columns image, question", "none with the answers", "caption"]),
        ("image,answer\na.png,one,two\n", ["more cells than the 2 columns", "quotes"]),
        ("image,answer\na.png,\n", ["has no answer"]),
        ("image,answer\nhttps://a.org/b.png,yes\n", ["is an address", "fetch"]),
        ("image,answer\nb.png,yes\n", ["missing image: b.png"]),
        (json.dumps([{"messages": [{"role": "tool", "content": "x"}]}]), ["turn 1 from", "known are human, user"]),
        (json.dumps([{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}]), ["neither text nor image"]),
        (json.dumps([{"messages": [USER]}]), ["a question and no answer"]),
        (json.dumps([{"answer": "a", "image": {"bytes": "xx"}}]), ["which is not a path"]),
        (json.dumps([{"answer": "a", "image": "data:image/png;base64,xx"}]), ["base64", "save it as a file"]),
    ],
)
def test_rows_that_cannot_be_read_are_named(my, content, words, capsys):
    (my / "data").write_text(content)
    try:
        assert run(str(my / "data")) == 1
        told = capsys.readouterr().out
    except UserError as error:
        told = str(error)
    assert all(word in told for word in words), told


def test_images_outside_their_folder_are_refused_before_the_first_step(my, monkeypatch):
    elsewhere = my / "elsewhere"
    elsewhere.mkdir()
    (my / "rows.json").write_text(json.dumps([ROW | {"image": str(my / "images" / "a.png")}]))
    monkeypatch.setattr("cobra.preprocessing.datasets.datasets.count_unlabelled", lambda *_: 0)
    dataset = FinetuneDataset(my / "rows.json", elsewhere, first_pixel, None, None)
    config = PretrainConfig(dataset=components(my / "rows.json", elsewhere))
    config.dataset.dataset_root_dir = my
    with pytest.raises(UserError, match="name an image outside the folder .*elsewhere") as error:
        check_images(dataset, config, False, World(0, 1, torch.device("cpu")), print)
    assert "--dataset.finetune_stage_components rows.json,images" in str(error.value)


def test_a_pipe_is_refused_and_not_waited_for(my):
    pipe = my / "rows.json"
    os.mkfifo(pipe)
    for data in (my, pipe):
        with pytest.raises(UserError, match="is no regular file but a pipe or a device"):
            run(str(data))


def test_an_image_whose_text_cannot_be_read_is_left_out_and_named(my, capsys):
    (my / "images" / "a.txt").write_bytes(b"\xff\xfe\x00\xd8bad")
    assert run(str(my / "images")) == 1
    assert "has a text that cannot be read" in capsys.readouterr().out
