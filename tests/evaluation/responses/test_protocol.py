"""How the variants answer."""

from pathlib import Path

import pytest

from cobra.evaluation.responses.protocol import (
    ANALYSIS_PROMPT,
    DEFAULT_PROMPT,
    LMMS_EVAL_PROMPT,
    Answer,
    Protocol,
    resolve_prompt,
    scored_text,
    second_prompt,
)
from cobra.util.errors import UserError

STAGED = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> a dog"


@pytest.mark.parametrize(
    ("raw", "scored", "source"),
    [
        (f"{STAGED} </CONCLUSION>", "a dog", "conclusion"),
        (STAGED, "a dog", "conclusion"),
        ("<CAPTION> a cat </CAPTION> <REASONING> because", "a cat", "caption"),
        ("<CAPTION> a cat </CAPTION> <CONCLUSION> </CONCLUSION>", "a cat", "caption"),
        (" A plain caption.\n", "A plain caption.", "text"),
        ("<SUMMARY> only this", "<SUMMARY> only this", "text"),
        ("", "", "text"),
    ],
)
def test_what_is_scored(raw, scored, source):
    assert scored_text(raw) == (scored, source)


@pytest.mark.parametrize(
    ("analysis", "expected"),
    [
        ("It is red.\n", "An analysis of the image:\nIt is red.\n\nCaption?"),
        (STAGED, "An analysis of the image:\ns\nc\nr\n\nCaption?"),
        ("<SUMMARY> s </SUMMARY> <CAPTION> cut off he", "An analysis of the image:\ns\ncut off he\n\nCaption?"),
        ("{prompt} and {analysis}", "An analysis of the image:\n{prompt} and {analysis}\n\nCaption?"),
        ("<CONCLUSION> a dog </CONCLUSION>", "Caption?"),
        ("  ", "Caption?"),
    ],
)
def test_second_prompt_holds_the_analysis_and_never_the_conclusion(analysis, expected):
    assert second_prompt(analysis, "Caption?") == expected


def test_prompts_by_name_and_as_text():
    assert resolve_prompt("seed") == DEFAULT_PROMPT and resolve_prompt("lmms-eval") == LMMS_EVAL_PROMPT
    assert resolve_prompt(" What: a? ") == " What: a? "


def test_a_prompt_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("caption").write_text("\n  Was ist das?  Gr\u00fc\u00dfe\nund mehr.\n\n", encoding="utf-8")
    assert (
        resolve_prompt("@caption")
        == resolve_prompt(f"@{tmp_path}/caption")
        == "Was ist das?  Gr\u00fc\u00dfe\nund mehr."
    )
    # A text is never taken for a file.
    assert resolve_prompt("caption") == "caption"


@pytest.mark.fault("F13")
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_mark_of_a_prompt_file_is_not_asked(tmp_path, encoding):
    (tmp_path / "prompt.txt").write_text("Was ist das?\n", encoding=encoding)
    assert resolve_prompt(f"@{tmp_path}/prompt.txt") == "Was ist das?"


def bad_prompts(folder):
    (folder / "empty").write_text(" \n")
    (folder / "latin").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    return {
        "": "--prompt is empty: leave it out",
        " \n": "--prompt is empty",
        f"@{folder}/none": "cannot be read \\(No such file or directory\\). A prompt that begins with @",
        f"@{folder}": "cannot be read \\(Is a directory",
        f"@{folder}/empty": "empty holds no text",
        f"@{folder}/latin": "latin is not UTF-8 text: .* at byte 2",
        "@": "cannot be read",
        "@a\0b": "cannot be read",
        f"@{'x' * 5000}": "cannot be read \\(File name too long",
    }


def test_bad_prompts(tmp_path):
    for prompt, message in bad_prompts(tmp_path).items():
        with pytest.raises(UserError, match=message):
            resolve_prompt(prompt)


def test_an_answer_is_read_for_what_is_scored():
    assert Answer.from_text(7, "Caption?", f"{STAGED} </CONCLUSION>", "before") == Answer(
        7, "Caption?", f"{STAGED} </CONCLUSION>", "a dog", "conclusion", True, "before"
    )
    assert Answer.from_text("x", "", "", problem="broken") == Answer("x", "", "", "", "text", False, None, "broken")


def test_settings_hold_what_a_variant_depends_on():
    direct = Protocol().settings(False, False)
    assert direct == Protocol(batch_size=1).settings(False, True)
    assert direct == {"prompt": DEFAULT_PROMPT, "do_sample": False, "max_new_tokens": 512}
    asked, own = Protocol().settings(True, False), Protocol().settings(True, True)
    assert asked["scratchpad"]["first_prompt"] == ANALYSIS_PROMPT and asked["scratchpad"]["stop_strings"] == []
    assert own["scratchpad"]["first_prompt"] == DEFAULT_PROMPT
    assert own["scratchpad"]["stop_strings"] == ["</REASONING>", "<CONCLUSION>"]
    assert Protocol("Caption?", 64).settings(False, False) == {
        "prompt": "Caption?",
        "do_sample": False,
        "max_new_tokens": 64,
    }


def test_the_hash_is_of_the_wordings_alone():
    assert Protocol().prompt_sha256 == Protocol(batch_size=1, max_new_tokens=3).prompt_sha256
    assert Protocol().prompt_sha256 != Protocol(prompt=DEFAULT_PROMPT + " ").prompt_sha256
    assert set(Protocol().wordings.values()) >= {DEFAULT_PROMPT, ANALYSIS_PROMPT}


def test_a_search_is_told_as_the_sampling_that_it_is():
    plain, searched = Protocol("What?"), Protocol("What?", search="stage-beam", beams=3)
    assert plain.decoding["do_sample"] is False and "search" not in plain.decoding
    for found in (searched.decoding, searched.settings(True, True)):
        assert (found["do_sample"], found["search"], found["beams"]) == (True, "stage-beam", 3)
