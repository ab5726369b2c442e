"""Parsing of command lines: text arrives as it was typed, and every mistake is one paragraph and an exit code."""

import errno
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from draccus import ChoiceRegistry
from hypothesis import example, given
from hypothesis import strategies as st

from cobra.evaluation.responses.protocol import resolve_prompt
from cobra.util.cli import parse, run
from cobra.util.errors import SharedError, UserError
from cobra.util.home_paths import PathText


@dataclass
class Drink(ChoiceRegistry):
    name: str
    cups: int = 1
    source: Path = Path("shelf")


@Drink.register_subclass("tea")
@dataclass
class Tea(Drink):
    name: str = "green"


@Drink.register_subclass("coffee")
@dataclass
class Coffee(Drink):
    name: str = "black"
    cups: int = 2


@dataclass
class Config:
    """Flags of a test."""

    prompt: str = "hello"
    note: str | None = "nothing"
    """A remark."""
    root: Path = Path("data")
    cache: Path | None = None
    count: int = 3
    ratio: float = 0.5
    fast: bool = False
    names: tuple[str, ...] = ("a",)
    model: PathText = "stock"
    base: PathText | None = None
    parts: tuple[Path, Path] = (Path("rows"), Path("images"))
    drink: Drink = field(default_factory=Tea)


TEXTS = [
    "yes",
    "no",
    "null",
    "None",
    "What: a?",
    "include x",
    "--x",
    "--prompt",
    "--help",
    "--drink.type",
    "--drink.type=milk",
    "-h",
    "",
    " two  spaces ",
    "2024",
    "1e3",
    "0x10",
    "~",
    "a #b",
    "# all",
    '{"a": 1}',
    "[1, 2]",
    "[1",
    "!!python/object/apply:os.getcwd []",
    "&a *a",
    "a\nb\r\n\tc",
    'it\'s "quoted" \\n',
    "a=b",
    "=",
    "h\u00e9 \u4e2d \U0001f600",
    "\x85\u2028\ufeff\x7f",
    # What an argument that is not UTF-8 looks like in Python.
    "\udcff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_typed(text):
    assert parse(Config, ["--prompt", text]).prompt == text
    assert parse(Config, [f"--prompt={text}"]).prompt == text
    assert parse(Config, ["--drink.name", text]).drink.name == text


@example("\U0001f600", "/")
@given(text=st.text(st.characters(exclude_characters="\x00")), path=st.text(st.characters(exclude_characters="\x00~")))
def test_any_text_arrives_as_typed(text, path):
    config = parse(Config, ["--prompt", text, "--root", path, "--note", "x" + text, "--drink.source", path])
    assert config.prompt == text
    assert config.note == "x" + text
    # "//a" is the one path that keeps two slashes, and a guard in front of it loses one.
    assert config.root == config.drink.source == (Path("/" + path.lstrip("/")) if path[:1] == "/" else Path(path))


@pytest.mark.parametrize("path", ["/", "a/", ".", "2024", "yes", "my data: x", "x #y", "include x", "null"])
def test_paths_arrive_as_typed(path):
    config = parse(Config, ["--root", path, "--drink.source", path])
    assert config.root == config.drink.source == Path(path)
    assert isinstance(config.root, Path)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.fault("F14")
@pytest.mark.parametrize("joined", [False, True])
def test_the_home_directory_is_put_into_paths(home, joined):
    given = {"root": "~", "cache": "~/c d", "model": "~/run", "base": "~/base.pt", "drink.source": "~/shelf"}
    given |= {"parts": "[~/rows.json, ~/images]"}
    pairs = [[f"--{flag}={value}"] if joined else [f"--{flag}", value] for flag, value in given.items()]
    config = parse(Config, [argument for pair in pairs for argument in pair])
    assert (config.root, config.cache) == (home, home / "c d")
    assert (config.model, config.base) == (str(home / "run"), str(home / "base.pt"))
    assert config.drink.source == home / "shelf"
    assert config.parts == (home / "rows.json", home / "images")
    assert parse(Config, ["--parts", "~/a,~/b"]).parts == (home / "a", home / "b")


@pytest.mark.fault("F14")
def test_another_users_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    assert parse(Config, ["--root", "~root/data", "--base", "~root"]) == Config(root=Path("/root/data"), base="/root")


@pytest.mark.fault("F14")
def test_only_paths_are_expanded(home):
    config = parse(
        Config, ["--prompt", "~/x", "--note", "~", "--names", "[~b, ~/a]", "--root", "a/~/b", "--model", "x~"]
    )
    assert (config.prompt, config.note, config.names) == ("~/x", "~", ("~b", "~/a"))
    assert (config.root, config.model) == (Path("a/~/b"), "x~")


@pytest.mark.fault("F14")
def test_files_that_flags_are_read_from_may_lie_at_home(home):
    (home / "flags.yaml").write_text("root: ~/data\ncount: 5\n")
    (home / "prompt.txt").write_text("What is it?\n")
    config = parse(Config, ["--config_path", "~/flags.yaml"])
    assert (config.root, config.count) == (home / "data", 5)
    assert resolve_prompt("@~/prompt.txt") == "What is it?"


@pytest.mark.fault("F14")
def test_without_such_a_home_no_folder_of_that_name_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--root ~nobody-of-this-name/x: there is no home directory"):
        parse(Config, ["--root", "~nobody-of-this-name/x"])
    (tmp_path / "~nobody-of-this-name").mkdir()
    assert parse(Config, ["--root", "~nobody-of-this-name/x"]).root == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize("null", ["null", "None", "none"])
def test_null_is_for_optional_text_only(null):
    assert parse(Config, ["--note", null]).note is None
    assert parse(Config, ["--cache", null]).cache is None
    assert parse(Config, ["--prompt", null]).prompt == null


def test_defaults():
    assert parse(Config, []) == Config()


def test_values_are_converted():
    config = parse(Config, ["--count", "-4", "--ratio", "1e-3", "--fast", "true"])
    assert (config.count, config.ratio, config.fast) == (-4, 1e-3, True)


def test_the_last_of_repeated_flags_counts():
    assert parse(Config, ["--count", "1", "--count", "2"]).count == 2
    assert isinstance(parse(Config, ["--drink.type", "coffee", "--drink.type", "tea"]).drink, Tea)


@pytest.mark.parametrize("value", ["[x, y]", '["x","y"]', "x,y", "x, y"])
def test_lists(value):
    assert parse(Config, ["--names", value]).names == ("x", "y")


def test_a_list_of_one_word_or_none():
    assert parse(Config, ["--names", "jsonl"]).names == ("jsonl",)
    assert parse(Config, ["--names", "[]"]).names == ()
    assert parse(Config, ["--names", ""]).names == ()


def test_fields_of_the_default_choice_need_no_type():
    config = parse(Config, ["--drink.cups", "5"])
    assert config.drink == Tea(cups=5)


def test_a_choice_keeps_its_other_defaults():
    assert parse(Config, ["--drink.type", "coffee"]).drink == Coffee()
    assert parse(Config, ["--drink.type=coffee", "--drink.name=white"]).drink == Coffee(name="white")


def test_config_file_and_flags_over_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("count: 7\nprompt: from the file\ndrink: {type: coffee, name: white}\n")
    config = parse(Config, ["--config_path", str(path), "--drink.cups", "9", "--count", "8"])
    assert config.drink == Coffee(name="white", cups=9)
    assert (config.count, config.prompt) == (8, "from the file")


MISTAKES = {
    "flag": (["--cout", "3"], "--cout"),
    "no abbreviations": (["--prom", "x"], "--prom"),
    "nested flag": (["--drink.sugar", "3"], "--drink.sugar"),
    "word": (["three"], "three"),
    "choice": (["--drink.type", "milk"], "tea, coffee"),
    "choice with equals": (["--drink.type=milk"], "tea, coffee"),
    "choice in place of a group": (["--drink", "coffee"], "--drink.type coffee"),
    "value": (["--count", "three"], "count"),
    "value of a choice": (["--drink.cups", "many"], "cups"),
    "null": (["--count", "null"], "count"),
    "null in a choice": (["--drink.cups", "null"], "drink.cups"),
    "half YAML": (["--count", "[1"], "a whole number"),
    "include": (["--count", "include nothing.yaml"], "nothing.yaml"),
    "bool for a number": (["--count", "true"], "--count takes a whole number, not 'true'"),
    "number for a bool": (["--fast", "2"], "--fast takes true or false"),
    "leaf of a group": (["--cups", "2"], "did you mean --drink.cups?"),
    "typo": (["--rootdir", "x"], "did you mean --root?"),
    "items": (["--parts", "a,b,c"], "--parts takes 2 items, separated by commas, not 3"),
    "no value": (["--count"], "--count"),
    "no value before a flag": (["--count", "--fast", "true"], "--count"),
    "no text": (["--prompt"], "--prompt"),
    "config file": (["--config_path", "absent.yaml"], "absent.yaml"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_paragraph(case, capsys):
    arguments, expected = MISTAKES[case]

    def main(config):
        raise AssertionError("a bad command line must not run")

    with pytest.raises(SystemExit) as stop:
        run(main, Config, arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err


def test_a_config_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="--help"):
        parse(Config, ["--config_path", str(path), "--drink.cups", "1"])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_exit_code_is_what_the_program_returns(returned, code):
    with pytest.raises(SystemExit) as stop:
        run(lambda config: returned, Config, [])
    assert stop.value.code == code


def test_user_errors_exit_with_2(capsys):
    def main(config):
        raise UserError("the file is gone: fetch it")

    with pytest.raises(SystemExit) as stop:
        run(main, Config, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the file is gone: fetch it\n"


def test_of_several_processes_each_reports(capsys, monkeypatch):
    """An unreadable image lies in the share of one process, which need not be the first."""

    def main(config):
        raise UserError("wrong")

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        run(main, Config, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error (process 1): wrong\n"


DISK_ERRORS = {
    "ENOSPC": "make room",
    "EDQUOT": "delete files of yours",
    "EROFS": "a folder that takes files",
    "EACCES": "a folder that takes files",
    "EFBIG": "ulimit -f",
    "ENAMETOOLONG": "a shorter name",
    "EISDIR": "move that folder away",
    "ENOTDIR": "is a file",
}


@pytest.mark.fault("A10")
@pytest.mark.parametrize("name", DISK_ERRORS)
def test_what_a_disk_refuses_is_one_paragraph_with_the_path_and_what_helps(capsys, name):
    number = getattr(errno, name)

    def main(config):
        raise OSError(number, os.strerror(number), "/disk/run\x1b[2J")

    with pytest.raises(SystemExit) as stop:
        run(main, Config, [])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: /disk/run\\u001b[2J cannot be used ({os.strerror(number)}): ")
    assert DISK_ERRORS[name] in told and told.count("\n") == 1


@pytest.mark.fault("A7", "A10")
def test_what_all_processes_end_with_is_said_by_one(capsys, monkeypatch):
    def main(config):
        raise SharedError("the folder is taken")

    monkeypatch.setattr("cobra.util.cli._HEAD_START_SECONDS", 0.0)
    for rank, told in (("1", ""), ("0", "error: the folder is taken\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            run(main, Config, [])
        assert stop.value.code == 2
        assert capsys.readouterr().err == told


def test_interrupt_exits_with_130(capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(main, Config, [])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_keep_their_traceback():
    def main(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main, Config, [])


def test_help_names_every_flag_and_its_text(capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda config: None, Config, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--prompt", "--note", "--drink.type", "--drink.cups", "A remark."):
        assert flag in text


@pytest.mark.fault("E10")
@pytest.mark.parametrize(("terminal", "width"), [(False, 120), (True, 80)])
def test_tables_have_120_columns_where_no_terminal_says_how_many(monkeypatch, terminal, width):
    monkeypatch.delenv("COLUMNS")
    for name in ("__stdin__", "__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, SimpleNamespace(closed=False, isatty=lambda: terminal))
    widths = []
    with pytest.raises(SystemExit):
        run(lambda config: widths.append(os.environ.get("COLUMNS", "80")), Config, [])
    assert widths == [str(width)]
    monkeypatch.setenv("COLUMNS", "120")
