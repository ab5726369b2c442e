"""The program that talks in a terminal: one question or a conversation, which survives what goes wrong."""

import contextlib
import io
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ImageChops
from rich.console import Console
from scratch import enliven, picture, scratch_vlm

import cobra
from cobra.commands import generate
from cobra.talk.options import TalkFlags
from cobra.talk.terminal import print_answer
from cobra.util.cli import parse, run
from cobra.util.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return generate


@pytest.fixture(scope="module")
def model():
    return enliven(scratch_vlm())


@pytest.fixture
def vlm(model, monkeypatch):
    monkeypatch.setattr(cobra, "load", lambda *_, **__: model)
    return model


@pytest.fixture
def image(tmp_path):
    picture(1).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def prompt_of(vlm, question):
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", question)
    return builder.get_prompt()


def talk(script, monkeypatch, capsys, lines, *flags):
    """Run the program with lines from the keyboard; return what it prints, without the menu, and its errors."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines) + b"\n"), encoding="utf-8"))
    script.main(parse(script.GenerateConfig, ["--max_new_tokens", "8", *flags]))
    printed = capsys.readouterr()
    return printed.out.replace(script._MENU, ""), printed.err


def test_one_question_is_answered_and_the_figures_stand_beside(script, vlm, image, capsys):
    script.main(parse(script.GenerateConfig, ["--image", image, "--prompt", "What?", "--max_new_tokens", "8"]))
    printed = capsys.readouterr()
    assert printed.out == "".join(vlm.stream(picture(1), prompt_of(vlm, "What?"), max_new_tokens=8)) + "\n"
    assert "tokens/s" in printed.err and "the state has 49,152 bytes" in printed.err


@pytest.mark.fault("F6")
@pytest.mark.parametrize("number", [1, 2])
def test_a_phone_photo_is_answered_as_its_upright_copy(script, vlm, capsys, monkeypatch, number):
    answers, preprocess = {}, vlm.preprocess
    for kind in ("phone", "upright"):
        path = ROOT / f"tests/faults/exif/images/00000000000{number}-{kind}.jpg"
        seen = []
        monkeypatch.setattr(vlm, "preprocess", lambda images, seen=seen: seen.extend(images) or preprocess(images))
        flags = ["--image", str(path), "--prompt", "Describe the picture.", "--max_new_tokens", "16"]
        script.main(parse(script.GenerateConfig, flags))
        answers[kind] = capsys.readouterr().out, seen[0]
    assert answers["phone"][0] == answers["upright"][0]
    # Both were compressed, each its own way round.
    difference = ImageChops.difference(answers["phone"][1], answers["upright"][1])
    assert max(high for _, high in difference.getextrema()) < 10


def test_flags_are_checked_before_the_model_is_loaded(script, monkeypatch, capsys):
    monkeypatch.setattr(cobra, "load", lambda *_, **__: pytest.fail("loaded"))
    for flags in (
        ["--search", "depth-first"],
        ["--search", "vote", "--beams", "0"],
        ["--top_p", "2"],
        ["--max_new_tokens", "0"],
        ["--search", "vote", "--repetition_penalty", "1.2"],
        ["--image", "nowhere.png"],
    ):
        with pytest.raises(SystemExit) as ended:
            run(script.main, script.GenerateConfig, [*flags, "--prompt", "What?"])
        assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_options_follow_the_flags():
    flags = TalkFlags(do_sample=True, top_k=3, min_p=0.1, repetition_penalty=1.3, max_new_tokens=9)
    options = flags.options()
    assert (options.do_sample, options.temperature, options.top_p) == (True, 1.0, 1.0)
    assert (options.top_k, options.min_p, options.repetition_penalty, options.max_new_tokens) == (3, 0.1, 1.3, 9)
    search = TalkFlags(top_k=3, min_p=0.1, max_new_tokens=99, beams=6).options("stage-beam")
    assert (search.kind, search.beams) == ("stage-beam", 6)
    assert (search.sampling.do_sample, search.sampling.temperature, search.sampling.top_p) == (True, 0.6, 0.9)
    assert (search.sampling.top_k, search.sampling.min_p, search.sampling.max_new_tokens) == (3, 0.1, 99)
    assert TalkFlags(search="vote", temperature=0.9, top_p=0.5).options().sampling.temperature == 0.9


def test_a_conversation_survives_everything(script, vlm, image, monkeypatch, capsys, tmp_path):
    (tmp_path / "not.png").write_text("no picture")
    lines = [
        *(b"i", b"nowhere.png", b"i", str(tmp_path / "not.png").encode(), b"i", b"http://127.0.0.1:1/a.png"),
        *(b"i", b"file:///etc/passwd", b"i", image.encode(), b"p", b"What?"),
        *(b"a b " * 600, b"", b"caf\xe9", b"q", b"never read"),
    ]
    out, err = talk(script, monkeypatch, capsys, lines)
    assert err.count("error: ") == 5 and err.count("tokens/s") == 2
    assert "600" not in out and "tokens, and the model reads 512 at most" in err
    assert "".join(vlm.stream(picture(1), prompt_of(vlm, "What?"), max_new_tokens=8)) in out


def test_an_image_is_told_and_may_be_quoted_or_left_out(script, vlm, image, monkeypatch, capsys):
    quoted = f"'{image}'".encode()
    out, err = talk(script, monkeypatch, capsys, [b"i", quoted, b"What?", b"i", b"", b"What?", b"q"])
    assert "a new conversation with an image of 48 x 48" in err and "a new conversation with no image" in err
    for seen in (picture(1), None):
        assert "".join(vlm.stream(seen, prompt_of(vlm, "What?"), max_new_tokens=8)) in out


@pytest.mark.parametrize("lines", [[b"What?"], [b"i"], [b"p"], []])
def test_the_end_of_the_input_ends_it(script, vlm, monkeypatch, capsys, lines):
    out, err = talk(script, monkeypatch, capsys, lines)
    assert err.count("tokens/s") == lines.count(b"What?")
    # What comes next in a terminal begins on a line of its own.
    assert out.endswith("\n")


def test_an_interrupt_stops_the_answer_and_not_the_program(script, vlm, image, monkeypatch, capsys):
    decode, calls = vlm.decode, []

    def interrupted(ids):
        calls.append(ids)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decode(ids)

    monkeypatch.setattr(vlm, "decode", interrupted)
    out, err = talk(script, monkeypatch, capsys, [b"What?", b"Why?", b"q"], "--image", image)
    whole = "".join(vlm.stream(picture(1), prompt_of(vlm, "What?"), max_new_tokens=8))
    first = out.split("\n")[0]
    assert whole.startswith(first) and 0 < len(first) < len(whole)
    assert "stopped" in err and err.count("tokens/s") == 1


CONVERSE = """
import sys, types
from cobra.commands import generate
sys.modules["cobra.talk.conversation"] = types.SimpleNamespace(Conversation=None)
generate.answer = lambda conversation, question, config: print(f"<{len(question)}>")
generate.converse(None, None, None)
"""


CHAT = """
import sys
sys.path.insert(0, "tests")
from scratch import enliven, scratch_vlm
import cobra
cobra.load = lambda *_, **__: enliven(scratch_vlm())
from cobra.commands import chat
chat.COMMAND.run(["cobra-tiny", "--max_new_tokens", "4"])
"""


@pytest.mark.fault("E13")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([b"nowhere.png\n", b"\n", b"What?\n", b"q\n"], ["error: ", "no image: the model sees nothing", "tokens/s"]),
        ([b"\x04"], []),
        ([b"q\n"], []),
        ([b"\n", b"\x04"], ["no image"]),
    ],
)
def test_a_terminal_is_told_how_to_begin_and_asked_for_an_image_first(typed, expected):
    pty = pytest.importorskip("pty")
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CHAT], cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        said, asked = b"", 0
        with contextlib.suppress(OSError):
            while block := os.read(keyboard, 1 << 16):
                said += block
                # One answer for each prompt.
                prompts = len(re.findall(rb"none\): |question: ", said))
                if prompts > asked and typed:
                    asked = prompts
                    os.write(keyboard, typed.pop(0))
        assert process.wait(60) == 0 and not typed
    os.close(keyboard)
    text = said.decode()
    first = text.index("path or address of the image (nothing for none): ")
    assert 0 <= text.index("loading cobra-tiny") < text.index("Ask about the image. i opens another one") < first
    assert all(part in text for part in expected) and "Traceback" not in text


@pytest.mark.fault("E13")
def test_the_wait_is_told_before_anything_heavy_is_imported():
    code = (
        "import sys; from cobra.commands import generate\n"
        "generate.note = lambda text: (print(text), sys.exit('torch' in sys.modules))\n"
        "generate.main(generate.GenerateConfig())"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100)
    assert (ran.returncode, ran.stdout) == (0, "loading cobra+3b\n")


@pytest.mark.fault("E13")
def test_one_question_without_an_image_is_answered_and_told(script, vlm, capsys):
    script.main(parse(script.GenerateConfig, ["--prompt", "What?", "--max_new_tokens", "8"]))
    printed = capsys.readouterr()
    assert printed.out == "".join(vlm.stream(None, prompt_of(vlm, "What?"), max_new_tokens=8)) + "\n"
    assert "no image: the model sees nothing, and answers with something invented" in printed.err


def test_a_long_question_in_a_terminal_is_not_cut():
    """A terminal by itself hands over 4,095 bytes of a line, drops the rest, and says nothing."""
    pty, _ = pytest.importorskip("pty"), pytest.importorskip("readline")
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CONVERSE], cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        said, to_write = b"", b"word " * 2000 + b"\nq\n"
        while b"question: " not in said:
            said += os.read(keyboard, 1 << 16)
        while process.poll() is None:
            readable, writable, _ = select.select([keyboard], [keyboard] if to_write else [], [], 0.1)
            if writable:
                to_write = to_write[os.write(keyboard, to_write[:256]) :]
            if readable:
                with contextlib.suppress(OSError):
                    said += os.read(keyboard, 1 << 16)
    os.close(keyboard)
    assert process.returncode == 0 and re.findall(rb"<\d+>", said) == [b"<9999>"]


FOUR = "<SUMMARY> a[b] </SUMMARY>\n\n<CAPTION> :smile: \x1b[2J\u202e </CAPTION>\n\n<CONCLUSION> 3 </CONCLUSION>"


def printed(text, **options):
    console = Console(file=io.StringIO(), width=20, **options)
    print_answer(text, console)
    return console.file.getvalue()


def test_a_pipe_gets_the_text_as_it_is():
    text = FOUR + "\ttab " + "long " * 50
    assert printed(text) == text + "\n"


def test_a_terminal_gets_headings_and_no_tags():
    plain = printed(FOUR, force_terminal=True, no_color=True, color_system=None)
    assert plain == "SUMMARY\na[b]\n\nCAPTION\n:smile: \\u001b[2J\\u202e\n\nCONCLUSION\n3\n"
    coloured = printed(FOUR, force_terminal=True, color_system="standard")
    assert "\x1b[1m3\x1b[0m" in coloured and "\x1b[2J" not in coloured and "<CAP" not in coloured


def test_a_terminal_gets_text_without_stages_plain():
    assert printed("A red [circle].", force_terminal=True, color_system="standard") == "A red [circle].\n"


def test_a_search_of_nothing_known_is_told():
    with pytest.raises(UserError, match="the known ones are: none, best-of-n, vote, stage-beam"):
        TalkFlags().options("depth-first")
