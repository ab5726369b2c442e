import os
import subprocess
import sys
from pathlib import Path

import pytest
from file_server import FileServer

from cobra.util.errors import UserError
from cobra.util.tokens import read_hf_token

pytestmark = pytest.mark.fault("F8")

REPOSITORY = Path(__file__).parents[2]
FAULTS = REPOSITORY / "tests/faults/token"
FIXTURES = {
    "empty.txt": None,
    "blank.txt": None,
    "bom.txt": "hf_abcdef",
    "two-lines.txt": "2 lines",
    "utf16.txt": "is not UTF-8",
}


def refusal(name, *secrets):
    with pytest.raises(UserError) as caught:
        read_hf_token(name)
    message = str(caught.value)
    assert not [secret for secret in secrets if secret in message], message
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)
    return message


def test_every_file_of_the_folder_is_known_here():
    assert {path.name for path in FAULTS.glob("*.txt")} == set(FIXTURES)


@pytest.mark.parametrize("name", ["empty.txt", "blank.txt", "bom.txt"])
def test_a_blank_file_is_no_token_and_a_byte_order_mark_is_no_part_of_one(name):
    assert read_hf_token(str(FAULTS / name)) == FIXTURES[name]


@pytest.mark.parametrize("name", ["two-lines.txt", "utf16.txt"])
def test_a_file_that_holds_no_token_is_named_and_not_shown(name):
    message = refusal(str(FAULTS / name), "hf_abc", "second")
    assert str(FAULTS / name) in message and FIXTURES[name] in message and "\n" not in message


@pytest.mark.parametrize("text", ["hf_SECRET123\n", " hf_SECRET123\r\n", "\ufeffhf_SECRET123 ", "\thf_SECRET123"])
def test_white_space_around_a_variable_is_no_part_of_the_token(text, monkeypatch):
    monkeypatch.setenv("MYTOK", text)
    assert read_hf_token("MYTOK") == "hf_SECRET123"


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_blank_variable_is_no_token(text, monkeypatch):
    monkeypatch.setenv("MYTOK", text)
    assert read_hf_token("MYTOK") is None


@pytest.mark.parametrize(
    "text", ["hf_SECRET 123", "hf_SECRET\nother", "hf_SECRET\N{LATIN SMALL LETTER E WITH ACUTE}", "hf_SECRET" * 200]
)
@pytest.mark.parametrize("variable", ["MYTOK", "HF_TOKEN"])
def test_a_variable_that_holds_no_token_is_named_and_not_shown(variable, text, monkeypatch):
    monkeypatch.setenv(variable, text)
    assert variable in refusal("MYTOK", "SECRET")


def test_a_folder_a_large_and_a_binary_file_are_no_token(tmp_path):
    assert "is no file" in refusal(str(tmp_path))
    large, binary = tmp_path / "large", tmp_path / "binary"
    with large.open("wb") as file:
        file.truncate(2**34)
    binary.write_bytes(b"hf_SECRET\x80\xff")
    assert "more than 1,000 characters" in refusal(str(large), "\0")
    assert "is not UTF-8" in refusal(str(binary), "SECRET")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_told(tmp_path):
    path = tmp_path / "token"
    path.touch(mode=0)
    assert "cannot be read (Permission denied)" in refusal(str(path))


def test_a_name_that_is_too_long_for_a_file_is_told():
    assert "cannot be read (File name too long)" in refusal("a" * 5000)


def test_a_token_in_the_place_of_a_name_is_refused_and_not_shown():
    assert "looks like a token itself" in refusal("hf_SECRET123456", "SECRET")


def test_neither_variable_nor_file_is_no_token():
    assert read_hf_token("hf_token") is None


def preprocess(token, **variables):
    with_server = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    program = [sys.executable, "scripts/preprocess.py", "--dataset_id", "llava-cot-100k", "--hf_token", token]
    return subprocess.run(
        program, cwd=REPOSITORY, env=os.environ | with_server | variables, capture_output=True, text=True, check=False
    )


def test_the_header_is_made_of_the_clean_token_and_messages_hide_it(tmp_path):
    server = FileServer()
    done = preprocess("MYTOK", MYTOK="hf_SECRET123\n", HF_ENDPOINT=server.url)
    server.http.shutdown()
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "404" in done.stderr
    assert "SECRET" not in done.stdout + done.stderr and "Illegal header" not in done.stderr
    asked = [request["authorization"] for request in server.requests if "authorization" in request]
    assert asked and set(asked) == {"Bearer hf_SECRET123"}
