"""Forms of answers: what each keeps, whose trace a shuffled row gets, and that all have the same rows in one order."""

import copy
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobra.conf import DatasetConfig
from cobra.demo.datasets import write_question_rows
from cobra.models.backbones.llm.backbone import load_tokenizer
from cobra.models.backbones.llm.prompting import ZephyrChatPromptBuilder
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.preprocessing.datasets import FinetuneDataset
from cobra.preprocessing.datasets.answer_forms import ANSWER_FORMS, Conversations
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.reasoning.trace import extract_reasoning_trace, given_conclusion
from cobra.training.check_run import check_run
from cobra.training.config import PretrainConfig
from cobra.util.data_utils import IGNORE_INDEX
from cobra.util.errors import UserError

ANSWER = (
    "<SUMMARY> s{0} </SUMMARY>\n\n<CAPTION> c{0} </CAPTION>\n\n<REASONING> r{0} </REASONING>\n\n"
    "<CONCLUSION> {1} </CONCLUSION>"
)


def row(number, conclusion="7", image="coco/{}.png", answers=1, **more):
    turns = []
    for turn in range(answers):
        answer = ANSWER.format(f"{number}-{turn}", conclusion)
        turns += [{"from": "human", "value": f"q{number}?"}, {"from": "gpt", "value": answer}]
    return {"id": number, "image": image.format(number), "conversations": turns, **more}


@pytest.fixture
def write(tmp_path):
    def write(rows):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return read_rows(tmp_path / "rows.json")

    return write


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    write_question_rows(folder, 70, 3)
    return folder


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("full", ANSWER.format("1-0", "7")),
        ("conclusion", "7"),
        ("untagged", "s1-0\n\nc1-0\n\nr1-0\n\n7"),
        ("without:CAPTION", ANSWER.format("1-0", "7").replace("<CAPTION> c1-0 </CAPTION>\n\n", "")),
        ("shuffled", ANSWER.format("2-0", "7")),
    ],
)
def test_each_form_keeps_its_part_and_the_conclusion(write, form, expected):
    rows = write([row(1), row(2)])
    [question, answer] = Conversations(rows, form)[0]
    assert question == rows[0]["conversations"][0]
    assert answer == {"from": "gpt", "value": expected}
    # Answers without tags end with it.
    assert given_conclusion(answer["value"].rpartition("\n\n")[2] if form == "untagged" else answer["value"])[0] == "7"


@pytest.mark.parametrize("form", ANSWER_FORMS)
def test_answers_without_stages_and_questions_stay(write, form):
    plain = {
        "id": 3,
        "conversations": [{"from": "human", "value": "<CONCLUSION> no"}, {"from": "gpt", "value": "Yes."}],
    }
    rows = write([plain, row(1), row(2, answers=3)])
    reformed = Conversations(rows, form)
    assert reformed[0] == plain["conversations"]
    assert [turn["from"] for turn in reformed[2]] == ["human", "gpt"] * 3
    assert [turn["value"] for turn in reformed[2]][::2] == ["q2?"] * 3


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["coco", "sqa", "vg"]), st.sampled_from(["7", "Yes", "red", "B"])), min_size=2)
)
def test_a_shuffled_row_keeps_kind_and_answer_and_never_its_own_trace(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    given_rows = [row(index, conclusion, source + "/{}.png") for index, (source, conclusion) in enumerate(drawn)]
    path.write_text(json.dumps(given_rows))
    reformed = Conversations(read_rows(path), "shuffled")
    groups = [drawn.count(key) for key in drawn]
    for index, key in enumerate(drawn):
        trace = extract_reasoning_trace(reformed[index][1]["value"])
        other = int(trace.reasoning[1:].split("-")[0])
        assert trace.is_valid and trace.conclusion == key[1] and other != index
        if groups[index] > 1:
            assert drawn[other] == key
        elif sum(source == key[0] for source, _ in drawn) > 1:
            assert drawn[other][0] == key[0]


def test_shuffling_is_the_same_for_every_seed_and_process(write):
    rows = write([row(index, random.Random(index).choice(["7", "red"])) for index in range(40)])
    first = Conversations(rows, "shuffled")
    again = copy.deepcopy(Conversations(read_rows(rows.annotation_file), "shuffled"))
    assert [first[index] for index in range(40)] == [again[index] for index in range(40)]


@pytest.mark.parametrize("form", ["conclusion", "shuffled", "untagged", "without:REASONING"])
def test_a_form_that_no_row_has(write, form):
    rows = write([{"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}])
    with pytest.raises(
        UserError, match=rf"--dataset.answer {form}: no answer in .* has a .* four stages were expected"
    ):
        Conversations(rows, form)


def test_one_answer_has_nobody_to_change_with(write):
    with pytest.raises(UserError, match="one answer alone"):
        Conversations(write([row(1)]), "shuffled")


def test_unknown_forms_are_named(write):
    with pytest.raises(UserError, match="--dataset.answer.*without:CAPTION"):
        Conversations(write([row(1)]), "without:CONCLUSION")


def test_the_trained_text_of_the_demos_rows(questions):
    """Of `conclusion` the conclusion alone; lengths, order and questions are the same in all arms."""
    tokenizer = load_tokenizer(TINY_FOLDER, 512)
    source = questions / "rows.json", questions / "images", lambda image: None, tokenizer, ZephyrChatPromptBuilder
    arms = {form: FinetuneDataset(*source, answer=form) for form in ANSWER_FORMS}
    rows = arms["full"].examples
    for form, arm in arms.items():
        assert arm.get_modality_lengths() == arms["full"].get_modality_lengths() and arm.examples == rows, form
    for index in range(len(rows)):
        truth = extract_reasoning_trace(rows[index]["conversations"][1]["value"]).conclusion
        example = arms["conclusion"][index]
        labelled = example["labels"] != IGNORE_INDEX
        assert tokenizer.decode(example["input_ids"][labelled]).strip() == f"{truth}<|endoftext|>"
        assert example["input_ids"][~labelled].equal(arms["full"][index]["input_ids"][: (~labelled).sum()])


def test_rows_that_are_left_out_are_the_same_in_all_arms(tmp_path):
    tokenizer = load_tokenizer(TINY_FOLDER, 80)
    rows = [row(index) | {"image": None} for index in range(4)]
    rows[1]["conversations"][1]["value"] = ANSWER.format("word " * 60, "8")
    for entry in rows:
        del entry["image"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = tmp_path / "rows.json", tmp_path, lambda image: None, tokenizer, ZephyrChatPromptBuilder
    arm = FinetuneDataset(*source, truncation="drop", answer="conclusion")
    full = FinetuneDataset(*source, truncation="drop")
    assert arm.examples == full.examples and arm.left_out == full.left_out > 0
    for index in range(len(arm)):
        number = arm.examples[index]["id"]
        assert f"q{number}?" in tokenizer.decode(arm[index]["input_ids"])


@pytest.mark.parametrize("truncation", ["right", "drop"])
def test_no_trace_of_another_row_moves_the_conclusion_over_the_limit(tmp_path, truncation):
    """A shuffled row has its CONCLUSION where the full row has it, and lacks it where that lacks it."""
    tokenizer, draw = load_tokenizer(TINY_FOLDER, 150), random.Random(5)
    rows = []
    for index in range(120):
        entry = row(index, answers=1 + index % 2)
        for turn in entry["conversations"]:
            if turn["from"] == "gpt":
                turn["value"] = turn["value"].replace(" r", " because" * draw.choice([5, 20, 40, 90]) + " r")
        del entry["image"]
        rows.append(entry)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = tmp_path / "rows.json", tmp_path, lambda image: None, tokenizer, ZephyrChatPromptBuilder
    full, arm = (FinetuneDataset(*source, truncation=truncation, answer=form) for form in ("full", "shuffled"))
    assert arm.examples == full.examples and 0 < len(arm)
    texts = [[tokenizer.decode(each[index]["input_ids"]) for index in range(len(each))] for each in (full, arm)]
    whole, others = ([text.count("</CONCLUSION>") == text.count("<|user|>") for text in each] for each in texts)
    assert whole == others and any(whole) and all(whole) == (truncation == "drop")
    assert sum(map(str.__eq__, *texts)) < len(arm) // 10


def test_a_row_that_no_other_trace_fits_has_one_all_the_same(write):
    rows = write([row(1), row(2), row(3)])
    reformed = Conversations(rows, "shuffled", lambda each: "2-0" not in each["conversations"][1]["value"])
    assert "3-0" in reformed[1][1]["value"] or "1-0" in reformed[1][1]["value"]
    assert "3-0" in reformed[0][1]["value"] and "1-0" in reformed[2][1]["value"]


def test_the_align_stage_has_no_forms():
    config = PretrainConfig(stage="align")
    config.dataset.answer = "conclusion"
    with pytest.raises(UserError, match="is of the finetune stages"):
        check_run(config, 1)


def test_the_flag_is_full_by_default():
    assert DatasetConfig.get_choice_class("custom")().answer == "full"
