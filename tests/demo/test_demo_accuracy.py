import pytest
from PIL import Image

from cobra.demo.accuracy import MAX_NEW_TOKENS, AnswerScore, answer_rows, score_answers

TRUE = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"


def row(kind, conclusion, options=()):
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": TRUE.format(conclusion)}]
    return {"kind": kind, "options": list(options), "conversations": turns}


def test_scores_count_structure_right_conclusions_and_the_commonest_answer():
    rows = [row("colour", "red"), row("colour", "red"), row("colour", "blue"), row("count", "2")]
    answers = [TRUE.format("red"), "a red", TRUE.format(" blue "), TRUE.format("3")]
    score = score_answers(rows, answers)
    colour = score.kinds["colour"]
    assert (colour.n, colour.correct, colour.majority) == (3, 3, 2)
    assert (score.kinds["count"].correct, score.kinds["count"].majority) == (0, 1)
    assert score.valid == 3
    overall = score.overall
    assert (overall.n, overall.correct, overall.majority) == (4, 3, 3)
    assert score.to_dict()["valid_structure"] == 0.75
    assert score.to_dict()["kinds"]["colour"]["accuracy"] == 1.0


def test_where_a_question_names_options_the_constant_answer_is_a_position():
    rows = [row("which", f"The {i}", (f"The {i}", "The other")) for i in range(3)]
    rows.append(row("which", "The b", ("The a", "The b")))
    assert score_answers(rows, [TRUE.format("x")] * 4).kinds["which"].majority == 3


@pytest.mark.fault("D3")
def test_an_options_words_are_right_where_the_question_lists_it():
    asked = row("which", "A", ("A", "B"))
    asked["conversations"][0]["value"] = "Which colour is it? A. red B. blue"
    assert score_answers([asked, asked], [TRUE.format("red"), TRUE.format("blue")]).kinds["which"].correct == 1


def test_answers_and_rows_must_match_in_number():
    with pytest.raises(ValueError):
        score_answers([row("count", "1")], [])
    assert AnswerScore().kinds == {}


class EchoBuilder:
    def __init__(self):
        self.text = ""

    def add_turn(self, role, message):
        self.text += f"{role}: {message}"

    def get_prompt(self):
        return self.text


class EchoVLM:
    """Answers with its prompt and the image's size."""

    def get_prompt_builder(self):
        return EchoBuilder()

    def preprocess(self, images):
        assert all(image.mode == "RGB" for image in images)
        return [image.size for image in images]

    def generate_batch(self, pixels, prompts, max_new_tokens):
        return [f"{prompt} {size[0]} {max_new_tokens}" for prompt, size in zip(prompts, pixels, strict=True)]


def test_every_row_is_answered_once_in_order_with_its_own_image(tmp_path):
    rows = []
    for index in range(5):
        Image.new("L", (index + 1, 4)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "conversations": [{"from": "human", "value": f"q{index}"}]})
    answers = answer_rows(EchoVLM(), rows, tmp_path, batch_size=2)
    assert answers == [f"human: q{index} {index + 1} {MAX_NEW_TOKENS}" for index in range(5)]
