"""The page's server: pictures, questions and answers over HTTP, one answer at a time, and what it refuses."""

import io
import json
import re
import socket
import sys
import threading
import time
import webbrowser
from dataclasses import replace
from queue import Queue

import pytest
import requests
from scratch import enliven, picture, scratch_vlm, search_options

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from talk_page import Script, Served

from cobra.commands import serve
from cobra.demo.examples import example_pictures
from cobra.talk import page, uploads
from cobra.talk.conversation import Conversation
from cobra.talk.options import TalkFlags
from cobra.util.cli import parse
from cobra.util.errors import UserError


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm())


@pytest.fixture(scope="module")
def server(vlm):
    with Served(vlm) as started:
        yield started


@pytest.fixture
def script(monkeypatch):
    scripted = Script()
    monkeypatch.setattr(page, "Conversation", scripted)
    return scripted


def png(seed=1):
    data = io.BytesIO()
    picture(seed).save(data, "png")
    return data.getvalue()


def upload(server, data=None):
    return requests.post(f"{server.url}/image", data=png() if data is None else data, timeout=100)


def ask(server, question="What?", conversation=None, search="none", beams=4, **options):
    body = {"question": question, "conversation": conversation, "search": search, "beams": beams}
    return requests.post(f"{server.url}/ask", json=body, timeout=100, **options)


def search(server, question="What?", conversation=None, **options):
    return ask(server, question, conversation, search="vote", **options)


def talk(server, key):
    return requests.post(f"{server.url}/talk", data=key, timeout=100).json()


def lines(response):
    return [json.loads(line) for line in response.text.splitlines()]


def text_of(told):
    return "".join(line["text"] for line in told if "text" in line)


def test_a_conversation_over_http_is_that_of_the_model(vlm, server):
    key = upload(server).json()["conversation"]
    builder = vlm.get_prompt_builder()
    for question in ("What?", "Why?"):
        told = lines(ask(server, question, key))
        assert told[0] == {"conversation": key, "waiting": 0}
        builder.add_turn("human", question)
        expected = "".join(vlm.stream(picture(1), builder.get_prompt(), max_new_tokens=8))
        builder.add_turn("gpt", expected)
        assert text_of(told) == page.printable(expected.strip())
        assert told[-1]["figures"]["state_bytes"] == 49152 and told[-1]["figures"]["written"] <= 8


def test_a_question_without_a_picture_begins_a_conversation(vlm, server):
    first = lines(ask(server, "What?"))
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", "What?")
    assert text_of(first) == page.printable(vlm.generate(None, builder.get_prompt(), max_new_tokens=8))
    second = lines(ask(server, "Why?", first[0]["conversation"]))
    assert second[0]["conversation"] == first[0]["conversation"] and "figures" in second[-1]


@pytest.mark.fault("E13")
def test_a_page_that_is_loaded_again_finds_its_conversation(server, script):
    key = upload(server).json()["conversation"]
    for piece in ("<SUMMARY> a <b> </SUMMARY>\n\n<CONCLUSION> \u202e3", None):
        script.said.put(piece)
    told = lines(search(server, "What\ud800?", key))
    found = talk(server, key.encode())
    assert found["picture"] and [turn["question"] for turn in found["turns"]] == ["What\\ud800?"]
    parts, streamed = found["turns"][0]["parts"], [line for line in told if "block" in line]
    for block in (0, 1):
        texts = ["".join(part["text"] for part in kind if part["block"] == block) for kind in (parts, streamed)]
        assert texts[0] == texts[1] == ("a <b>", "\\u202e3")[block]
    script.said.put(None)
    without = lines(search(server))[0]["conversation"]
    assert talk(server, without.encode())["picture"] is False


@pytest.mark.fault("E13")
@pytest.mark.parametrize("key", [b"", b"gone", b"\xff\x00", b'{"a": 1}', b"../talk.js"])
def test_of_a_conversation_that_is_not_there_nothing_is_told(server, key):
    assert talk(server, key) == {"turns": None}


@pytest.mark.fault("E13")
def test_conversations_are_found_by_their_key_alone(server):
    assert "larger than the 256 bytes" in talk(server, b"a" * 257)["error"]
    key = upload(server).json()["conversation"]
    assert len(key) >= 22
    assert requests.get(f"{server.url}/talk", params={"conversation": key}, timeout=100).status_code == 405
    for headers in ({"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example"}):
        assert requests.post(f"{server.url}/talk", data=key, headers=headers, timeout=100).status_code == 403


@pytest.mark.fault("E13")
def test_turns_are_those_that_the_model_remembers(vlm):
    conversation = Conversation(vlm, picture(1))
    answer = "".join(conversation.ask("What?", TalkFlags(max_new_tokens=8).options()))
    stopped = conversation.ask("Why?", TalkFlags(max_new_tokens=8).options())
    piece = next(stopped)
    stopped.close()
    assert conversation.turns == [("What?", answer), *([("Why?", piece)] if piece.strip() else [])]
    with pytest.raises(UserError):
        list(conversation.ask("a b " * 600, TalkFlags(max_new_tokens=8).options()))
    assert len(conversation.turns) <= 2 and conversation.has_image and not Conversation(vlm).has_image


@pytest.mark.fault("E13")
def test_the_page_says_what_the_model_knows_and_shows_examples(vlm):
    welcome = page.Welcome("it knows <b>shapes</b>", example_pictures())
    with Served(vlm, welcome=welcome) as served:
        text = requests.get(served.url, timeout=100).text
    assert "it knows &lt;b&gt;shapes&lt;/b&gt;" in text and text.count('class="example"') == 3
    assert all(f'alt="{example.caption}"' in text for example in example_pictures())
    assert len(text) < 20_000


def test_stages_are_told_apart_and_searches_are_passed_on(server, script):
    for piece in ("<SUMMARY> a <b>", "\u202e </SUMMARY>", "\n\n<CONCLUSION> 3", None):
        script.said.put(piece)
    told = lines(ask(server, "What?", search="stage-beam", beams=3))
    # Pieces that come at once may be told as one.
    for block, stage, text in ((0, "SUMMARY", "a <b>\\u202e"), (1, "CONCLUSION", "3")):
        parts = [part for part in told[1:-1] if part["block"] == block]
        assert {part["stage"] for part in parts} == {stage} and "".join(part["text"] for part in parts) == text
    [(_, options, _)] = script.asked
    assert options == search_options("stage-beam", 3, max_new_tokens=8)


@pytest.mark.parametrize("data", [b"", b"<html>", png()[:100]])
def test_what_is_no_picture_is_refused(server, data):
    answer = upload(server, data)
    assert answer.status_code == 400 and "cannot be opened as a picture" in answer.json()["error"]


def test_large_bodies_are_refused(server, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_BYTES", 1000)
    answer = upload(server, bytes(5000))
    assert answer.status_code == 400 and "larger than the 1,000 bytes" in answer.json()["error"]
    assert "larger than" in ask(server, "a" * (page._MAX_QUESTION_BYTES + 1)).json()["error"]


@pytest.mark.parametrize(
    "change",
    [
        *({"search": "depth-first"}, {"search": 3}, {"beams": 0}, {"beams": 10**9}, {"beams": True}, {"beams": "4"}),
        *({"question": None}, {"question": ["a"]}, {"conversation": 3}, {"conversation": "gone"}),
    ],
)
def test_questions_of_another_form_are_refused(server, change):
    answer = ask(server, **change)
    assert answer.status_code == 400 and answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_question_are_refused(server, body):
    answer = requests.post(f"{server.url}/ask", data=body, timeout=100)
    assert answer.status_code == 400 and "load the page again" in answer.json()["error"]


def test_what_the_model_refuses_is_told_and_the_next_question_is_answered(server):
    key = upload(server).json()["conversation"]
    told = lines(ask(server, "a b " * 600, key))
    assert "and the model reads 512 at most" in told[-1]["error"]
    # Too few tokens for the tags of four stages.
    assert "leave no room for the four stages" in lines(ask(server, "What?", key, "vote", 2))[-1]["error"]
    assert "figures" in lines(ask(server, "What?\ud800\x00", key))[-1]


def test_an_unexpected_failure_is_told_here_and_there(server, script, monkeypatch, capsys):
    monkeypatch.setattr(script.said, "get", lambda timeout: 1 / 0)
    assert lines(search(server))[-1]["error"] == "the answer broke off (ZeroDivisionError: division by zero)"
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.undo()
    assert "figures" in lines(ask(server))[-1]


def test_other_pages_and_other_names_are_kept_out(server):
    for headers in ({"Origin": "http://elsewhere.example"}, {"Origin": "null"}, {"Host": "elsewhere.example"}):
        assert ask(server, headers=headers).status_code == 403
        assert requests.post(f"{server.url}/image", data=png(), headers=headers, timeout=100).status_code == 403
    assert requests.get(server.url, headers={"Host": "elsewhere.example"}, timeout=100).status_code == 403
    assert ask(server, headers={"Origin": server.url}).status_code == 200


def test_the_page_names_nobody_else_and_escapes(vlm):
    with Served(vlm, name="<b>a & b</b>") as served:
        answer = requests.get(served.url, timeout=100)
        files = [requests.get(f"{served.url}{path}", timeout=100) for path in ("/talk.css", "/talk.js")]
        assert requests.get(f"{served.url}/docs", timeout=100).status_code == 404
    assert "<b>" not in answer.text and "&lt;b&gt;a &amp; b" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not any("//" in file.text.replace("://", "//").replace("// ", "") for file in files)
    assert "http" not in answer.text


def test_one_answer_at_a_time_and_the_next_is_told_its_place(server, script):
    with search(server, "first", stream=True) as first, search(server, "second", stream=True) as second:
        one, two = first.iter_lines(1), second.iter_lines(1)
        assert json.loads(next(one))["waiting"] == 0
        assert json.loads(next(two))["waiting"] == 1
        script.said.put("a")
        assert json.loads(next(one))["text"] == "" and json.loads(next(one))["text"] == "a"
        assert [question for question, *_ in script.asked] == ["first"]
        for piece in (None, "b", None):
            script.said.put(piece)
        assert "figures" in json.loads(list(one)[-1])
        assert [json.loads(line).get("text") for line in two][:2] == ["", "b"]
    assert [question for question, *_ in script.asked] == ["first", "second"]


def test_who_goes_stops_the_answer_and_who_waits_is_next(server, script):
    first = search(server, "first", stream=True)
    told = first.iter_lines(1)
    next(told)
    script.said.put("a")
    assert json.loads(next(told))["block"] == 0
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(search(server, "second")))
    waiting.start()
    first.close()
    # Pieces, until the server has seen that nobody listens.
    while script.closed.empty():
        script.said.put("b ")
        time.sleep(0.01)
    assert script.closed.get() is False
    script.said.put(None)
    waiting.join()
    assert "figures" in lines(answers[0])[-1]


@pytest.mark.fault("B8")
def test_who_goes_stops_an_answer_of_which_nothing_is_shown_yet(server, script):
    """A search, or an answer that begins with white space."""
    with ask(server, "first", search="vote", stream=True) as first:
        told = first.iter_lines(1)
        next(told)
        # Otherwise it may be gone before the answer is begun.
        script.said.put("a")
        assert json.loads(next(told))["block"] == 0
    end = time.monotonic() + 60
    while script.closed.empty() and time.monotonic() < end:
        script.said.put("")
        time.sleep(0.01)
    assert script.closed.get(timeout=1) is False
    while not script.said.empty():
        script.said.get()
    script.said.put(None)
    assert "figures" in lines(search(server, "second"))[-1]


@pytest.mark.fault("B8")
def test_who_goes_while_waiting_is_not_waited_for(server, script):
    with search(server, "first", stream=True) as first:
        # Kept: what is read of them goes with the iterators, and the connection with it.
        one = first.iter_lines(1)
        next(one)
        with search(server, "second", stream=True) as second:
            two = second.iter_lines(1)
            assert json.loads(next(two))["waiting"] == 1
        while True:
            with search(server, "third", stream=True) as third:
                told = third.iter_lines(1)
                # The server has not seen yet that the second has gone, or a third of before.
                if json.loads(next(told))["waiting"] == 1:
                    for _ in range(2):
                        script.said.put(None)
                    assert "figures" in json.loads(list(told)[-1])
                    break
    assert [question for question, *_ in script.asked] == ["first", "third"]


def test_not_everybody_may_wait(server, script, monkeypatch):
    monkeypatch.setattr(page, "_MAX_SEARCHES", 0)
    with search(server, "first", stream=True) as first:
        told = first.iter_lines(1)
        next(told)
        script.said.put("a")
        next(told)
        refused = search(server, "second")
        assert refused.status_code == 400 and "1 question in front of this one already" in refused.json()["error"]
        script.said.put(None)
        list(told)


def test_conversations_are_forgotten_by_the_bytes_they_hold(server, script, monkeypatch):
    monkeypatch.setattr(page, "_MAX_KEPT_BYTES", 2 * page._PIXEL_BYTES)
    keys = [upload(server).json()["conversation"] for _ in range(3)]
    assert "has been forgotten" in search(server, "What?", keys[0]).json()["error"]
    for key in keys[1:]:
        script.said.put(None)
        assert search(server, "What?", key).status_code == 200


def test_old_conversations_are_forgotten(server, script, monkeypatch):
    monkeypatch.setattr(page, "_MAX_CONVERSATIONS", 2)
    keys = [upload(server).json()["conversation"] for _ in range(3)]
    assert "has been forgotten" in search(server, "What?", keys[0]).json()["error"]
    script.said.put(None)
    assert search(server, "What?", keys[2]).status_code == 200


@pytest.fixture(scope="module")
def program():
    return serve


def test_the_program_serves_on_this_machine_only_unless_it_is_told(program, monkeypatch, capsys, vlm):
    import uvicorn

    served = []
    monkeypatch.setattr("cobra.load", lambda *_, **__: vlm)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: served.append(sockets[0].getsockname()))
    monkeypatch.setattr(webbrowser, "open", lambda url: pytest.fail("opened"))
    config = parse(program.ServeConfig, ["--port", "0", "--model_path", "runs/first-try"])
    program.main(config)
    out = capsys.readouterr().out
    assert served[0][0] == "127.0.0.1" and f"http://127.0.0.1:{served[0][1]} " in out and "token" not in out
    program.main(replace(config, host="0.0.0.0"))
    out = capsys.readouterr().out
    assert served[1][0] == "0.0.0.0" and f":{served[1][1]}/?token=" in out and "0.0.0.0" not in out


def test_a_key_is_taken_from_the_environment_and_not_shown(program, monkeypatch, capsys, vlm):
    import uvicorn

    monkeypatch.setattr("cobra.load", lambda *_, **__: vlm)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setenv("COBRA_API_KEY", "a-secret")
    program.main(parse(program.ServeConfig, ["--port", "0", "--model_path", "runs/first-try"]))
    out = capsys.readouterr().out
    assert "/?token=" in out and "a-secret" not in out
    assert re.search(
        r"API is at http://127\.0\.0\.1:\d+/v1, the model's name there is first-try; its key is the one", out
    )
    for flags in (["--max_batch", "0"], ["--max_waiting", "0"]):
        with pytest.raises(UserError, match="at least 1"):
            program.main(parse(program.ServeConfig, flags))


@pytest.mark.fault("E13")
def test_the_program_opens_the_page_where_it_is_asked_to(program, monkeypatch, capsys, vlm):
    import uvicorn

    opened = Queue()
    monkeypatch.setattr("cobra.load", lambda *_, **__: vlm)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(webbrowser, "open", opened.put)
    program.main(parse(program.ServeConfig, ["cobra-tiny", "--port", "0", "--open"], "model_path"))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "loading cobra-tiny" and f"open {opened.get(timeout=60)} in a browser" in out[1]


def test_wrong_flags_and_taken_ports_are_told_before_the_model_is_loaded(program, monkeypatch):
    monkeypatch.setattr("cobra.load", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port, host in ((taken.getsockname()[1], "127.0.0.1"), (70000, "127.0.0.1"), (0, "256.1.1.1")):
            with pytest.raises(UserError, match="nothing can be served on .* --port"):
                program.main(program.ServeConfig(host=host, port=port))
    with pytest.raises(UserError, match="unknown"):
        program.main(program.ServeConfig(search="depth-first"))
    # The page would refuse every question.
    with pytest.raises(UserError, match="--beams is 65: on the page a search has 64 branches at most"):
        program.main(program.ServeConfig(beams=65))


def test_there_are_connections_for_all_who_may_wait_as_far_as_files_may_be_opened(program, monkeypatch, vlm, caplog):
    import uvicorn

    from cobra.talk import page

    limits = []
    monkeypatch.setattr("cobra.load", lambda *_, **__: vlm)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: limits.append(self.config.limit_concurrency))
    flags = ["--port", "0", "--max_batch", "10", "--max_waiting", "1000"]
    for files in (10_000, 500):
        monkeypatch.setattr(page, "allow_open_files", lambda wanted, files=files: files)
        program.main(parse(program.ServeConfig, flags))
    assert limits[0] > 1010 and limits[1] < 500
    [record] = caplog.records
    assert "ulimit -n" in record.message and "--max_waiting" in record.message


def test_a_missing_package_names_the_extra(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"needs the package uvicorn, .*cobra-vlm\[serve\]"):
        program.main(program.ServeConfig())


def test_flags_are_the_first_choice_on_the_page(vlm):
    with Served(vlm, TalkFlags(search="vote", beams=7)) as served:
        text = requests.get(served.url, timeout=100).text
    assert '<option value="vote" selected>' in text and 'value="7"' in text
