"""OpenAI's API: the openai client gets the answers of `generate`; what the model cannot do is refused by name."""

import base64
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests
from scratch import enliven, picture, scratch_vlm

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("openai", reason="the client is not installed")

import openai
from talk_page import Served

from cobra.models.vlms import as_turn
from cobra.serving.engine import Engine
from cobra.talk import uploads
from cobra.talk.access import Access
from cobra.talk.api_errors import ApiError
from cobra.talk.chat_request import MAX_TOKENS, check_size
from cobra.talk.options import TalkFlags
from cobra.util.printable import printable

QUESTION = "How many shapes are there?"
ENDLESS = {"max_tokens": MAX_TOKENS, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm())


@pytest.fixture(scope="module")
def server(vlm):
    with Served(vlm, TalkFlags(max_new_tokens=12), "tiny") as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def url_of(image, kind="png"):
    data = io.BytesIO()
    image.save(data, kind)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def user(text=QUESTION, image=None):
    if image is None:
        return {"role": "user", "content": text}
    parts = [{"type": "image_url", "image_url": {"url": url_of(image)}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def complete(client, *messages, **fields):
    return client.chat.completions.create(model="tiny", messages=list(messages) or [user()], **fields)


def post(server, body, **options):
    data = body if isinstance(body, bytes) else json.dumps(body)
    return requests.post(f"{server.url}/v1/chat/completions", data=data, timeout=100, **options)


def test_answers_are_those_of_generate(vlm, client):
    for image in (None, picture(1)):
        found = complete(client, user(image=image))
        expected = vlm.generate(image, as_turn(vlm, QUESTION), max_new_tokens=12)
        assert found.choices[0].message.content == expected
        assert found.choices[0].finish_reason in ("stop", "length") and found.model == "tiny"
        prompt = len(vlm.encode(as_turn(vlm, QUESTION))) + (vlm.vision_backbone.num_patches if image else 0)
        assert found.usage.prompt_tokens == prompt
        assert found.usage.total_tokens == prompt + found.usage.completion_tokens <= prompt + 12


def test_conversations_go_on_and_instructions_stand_before_the_first_question(vlm, client):
    builder = vlm.get_prompt_builder()
    for role, text in (("human", "Be brief.\n\nWhat?"), ("gpt", "Three."), ("human", "Why <|endoftext|> so?")):
        builder.add_turn(role, text.replace(" <|endoftext|>", ""))
    expected = vlm.generate(picture(2), builder.get_prompt(), max_new_tokens=12)
    reply = {"role": "assistant", "content": "Three.", "refusal": None, "tool_calls": []}
    system = {"role": "system", "content": "Be brief."}
    found = complete(client, system, user("What?", picture(2)), reply, user("Why <|endoftext|> so?"))
    assert found.choices[0].message.content == expected


@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_says_the_same_and_counts_at_its_end(vlm, client, count):
    fields = {"n": count, "temperature": 0.9, "top_p": 0.95, "seed": 8, "max_tokens": 20}
    whole = complete(client, user(image=picture(1)), **fields)
    texts, reasons, usage = [""] * count, [None] * count, []
    with complete(
        client, user(image=picture(1)), stream=True, stream_options={"include_usage": True}, **fields
    ) as stream:
        for chunk in stream:
            usage.append(chunk.usage)
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage[:-1] == [None] * (len(usage) - 1) and usage[-1] == whole.usage
    options = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 20}
    for number, text in enumerate(texts):
        assert text == vlm.generate(picture(1), as_turn(vlm, QUESTION), seeds=[8 + number], **options)


def test_an_answer_ends_before_a_stop_text(vlm, client):
    whole = vlm.generate(None, as_turn(vlm, QUESTION), max_new_tokens=12)
    stop = whole[5:8]
    for stream in (False, True):
        found = complete(client, stop=[stop, "\n\n\n"], stream=stream)
        choices = [chunk.choices[0] for chunk in found] if stream else found.choices
        text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
        assert text == whole[: whole.index(stop)].strip() and choices[-1].finish_reason == "stop"


def test_without_a_seed_samples_differ_and_zero_is_greedy(vlm, client):
    several = {complete(client, temperature=1.5, max_tokens=20).choices[0].message.content for _ in range(4)}
    assert len(several) > 1
    assert complete(client, temperature=0, top_p=0.5).choices[0].message.content == vlm.generate(
        None, as_turn(vlm, QUESTION), max_new_tokens=12
    )


def test_models(client):
    [model] = client.models.list().data
    assert model.id == "tiny" and client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="'other' does not exist") as raised:
        client.models.retrieve("other")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=[user()])


def test_what_asks_for_nothing_is_taken(client):
    complete(
        client,
        **{"frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "user": "somebody", "n": None},
        **{"response_format": {"type": "text"}, "tool_choice": "none", "parallel_tool_calls": True, "store": False},
    )


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("changes", "param", "code", "words"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter", "Did you mean temperature?"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter", "leave it out, or give 0"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter", "cannot do"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "from 1 to 65,536"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value", "differ"),
        ({"n": 65}, "n", "invalid_value", "from 1 to 64"),
        ({"n": 1.5}, "n", "invalid_type", "a whole number"),
        ({"temperature": True}, "temperature", "invalid_type", "a number"),
        ({"temperature": 2.1}, "temperature", "invalid_value", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "invalid_value", "above 0"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value", "4 texts"),
        ({"stop": [""]}, "stop", "invalid_value", "4 texts"),
        ({"stop": 1}, "stop", "invalid_type", "a text or a list"),
        ({"stream": "yes"}, "stream", "invalid_type", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "without stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter", "unknown"),
        ({"model": None}, "model", "missing_required_parameter", "name of a model"),
        ({"messages": None}, "messages", "missing_required_parameter", "a list"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "invalid_value", "expected one of"),
        ({"messages": [user(), user()]}, "messages[1]", "invalid_value", "alternate"),
        ({"messages": [user(), {"role": "assistant"}]}, "messages", "invalid_value", "must be the user's"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type", "list of parts"),
        ({"messages": [user() | {"nme": "a"}]}, "messages[0].nme", "unknown_parameter", "nme"),
        ({"messages": [user("red " * 2000)]}, "messages", "context_length_exceeded", "maximum context length is 512"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            *("messages[0].content[0]", "invalid_value", "input_audio"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}]},
            *("messages[0].content[0]", "invalid_image_url", "nothing is fetched"),
        ),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages", "invalid_image", "cannot be opened"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server, changes, param, code, words):
    answer = post(server, {"model": "tiny", "messages": [user()]} | changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code) and words in error["message"]


def test_two_pictures_are_refused_and_one_twice_is_one(vlm, server, client):
    error = post(server, {"model": "tiny", "messages": [user("a", picture(1)), {"role": "assistant", "content": "b"}]})
    assert "must be the user's" in error.json()["error"]["message"]
    turns = [user("a", picture(1)), {"role": "assistant", "content": "b"}]
    error = post(server, {"model": "tiny", "messages": [*turns, user("c", picture(2))]}).json()["error"]
    assert error["param"] == "messages[2].content[0]" and "there are 2 pictures" in error["message"]
    assert complete(client, *turns, user("c", picture(1))).choices[0].message.content


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object_is_refused(server, body):
    answer = post(server, body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("name", ["\ud800", "x" * 100_000, "\u202e"])
def test_names_of_any_characters_are_refused_in_words(server, name):
    for fields in ({name: 1}, {"messages": [user() | {name: 1}]}, {"stream": True, "stream_options": {name: 1}}):
        answer = post(server, {"model": "tiny", "messages": [user()], **fields})
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] == "unknown_parameter" and len(error["param"]) < 300


def content(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (content("red " * 100_000), "the messages have 400,0"),
        (content([{"type": "text", "text": ""}] * 100_000), "bytes besides its picture"),
        ([[]] * 700_000, "bytes besides its picture"),
        (content("red;base64," + "red " * 300_000), "bytes besides its picture"),
        (content("red;base64," + "red" * 500_000), "the messages have 1,500,0"),
    ],
)
def test_what_is_far_too_long_is_refused_before_it_is_encoded(vlm, server, monkeypatch, messages, words):
    monkeypatch.setattr(vlm, "encode", lambda text: pytest.fail("encoded"))
    answer = post(server, {"model": "tiny", "messages": messages})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "messages", "context_length_exceeded")
    assert words in error["message"] and "shorten them" in error["message"]


@pytest.mark.parametrize("escape", [json.dumps, lambda text: json.dumps(text).replace("/", "\\/")])
def test_a_picture_is_no_part_of_the_text_however_large(escape):
    url = "data:image/png;base64," + "A/" * 500_000
    body = ('{"a": ' + escape(url) + ', "b": "red"}').encode()
    check_size(body, 100)
    with pytest.raises(ApiError, match="bytes besides its picture"):
        check_size(body + b" " * 100, 100)


def test_others_are_served_while_a_long_text_is_encoded(vlm, server, client, monkeypatch):
    encode, served = vlm.encode, threading.Event()

    def encode_once_served(text):
        assert served.wait(60)
        return encode(text)

    monkeypatch.setattr(vlm, "encode", encode_once_served)
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(post, server, {"model": "tiny", "messages": [user("red " * 1200)]})
        assert client.models.list().data and not asked.done()
        served.set()
        error = asked.result().json()["error"]
    assert error["code"] == "context_length_exceeded" and "tokens: shorten them" in error["message"]


def test_other_paths_are_refused_in_the_same_form(server):
    for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("POST", "/v1/embeddings")):
        answer = requests.request(method, server.url + path, timeout=100)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"
    headers = {"Origin": "http://elsewhere.example"}
    answer = requests.get(f"{server.url}/v1/models", headers=headers, timeout=100)
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "access_denied"


def test_too_much_at_a_time_is_refused(server, monkeypatch):
    monkeypatch.setattr(uploads, "_HELD_BYTES", 1000)
    answer = post(server, {"model": "tiny", "messages": [user("red " * 1000)]})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "overloaded"
    assert int(answer.headers["Retry-After"]) > 0
    assert post(server, {"model": "tiny", "messages": [user()]}).status_code == 200


def test_keys(vlm):
    with Served(vlm, name="tiny", access=Access.for_address("127.0.0.1", api_key="a secret \u00e4")) as served:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "a secret"}, {"Authorization": "\xff"}):
            answer = requests.get(f"{served.url}/v1/models", headers=headers, timeout=100)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer" and "secret" not in answer.text
        # An open page beside it would let everybody in.
        assert requests.get(served.url, timeout=100).status_code == 403
    with Served(vlm, name="tiny", access=Access.for_address("127.0.0.1", api_key="secret")) as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0) as client:
            assert client.models.list().data[0].id == "tiny"
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="Secret", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
    access = Access(None, "the page's token")
    with Served(vlm, name="tiny", access=access) as served:
        headers = {"Authorization": "Bearer the page's token"}
        assert requests.get(f"{served.url}/v1/models", headers=headers, timeout=100).status_code == 200
        assert requests.get(f"{served.url}/v1/models?token=the page's token", timeout=100).status_code == 401


def test_who_waits_for_too_many_others_is_told_when_to_come_again(vlm):
    engine = Engine(vlm, max_rows=1, max_waiting=1)
    with Served(vlm, name="tiny", engine=engine) as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            first = complete(client, stream=True, **ENDLESS)
            next(iter(first))
            second = threading.Thread(target=lambda: complete(client, max_tokens=1))
            second.start()
            while not engine._unread:
                time.sleep(0.001)
            for stream in (False, True):
                with pytest.raises(openai.InternalServerError, match="wait already") as raised:
                    complete(client, stream=stream)
                assert raised.value.status_code == 503 and int(raised.value.response.headers["Retry-After"]) > 0
            first.close()
            second.join()


def test_as_many_wait_as_may_and_the_next_is_told_in_words(vlm):
    """More than uvicorn had connections for."""
    engine = Engine(vlm, max_rows=1, max_waiting=300)
    body = json.dumps({"model": "tiny", "messages": [user()], "max_tokens": MAX_TOKENS, "ignore_eos": True})
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with Served(vlm, name="tiny", engine=engine) as served, ExitStack() as waiting:
        for _ in range(301):
            connection = waiting.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60))
            connection.sendall(request.encode())
        deadline = time.monotonic() + 60
        while engine._unread < 300 and time.monotonic() < deadline:
            time.sleep(0.001)
        answer = post(served, {"model": "tiny", "messages": [user()]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_no_longer_written_for(server, client, stream):
    body = json.dumps({"model": "tiny", "messages": [user()], "stream": stream, "max_tokens": MAX_TOKENS})
    body = body[:-1] + ', "ignore_eos": true}'
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    jobs = server.engine.jobs
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request.encode())
        while not any(job.answers[0].written for job in jobs()):
            time.sleep(0.001)
    while jobs():
        time.sleep(0.001)
    assert complete(client).choices[0].message.content


def test_the_page_is_answered_beside_it(vlm, server, client):
    with complete(client, stream=True, **ENDLESS) as stream:
        next(iter(stream))
        body = {"question": QUESTION, "conversation": None, "search": "none", "beams": 4}
        answer = requests.post(f"{server.url}/ask", json=body, timeout=100).text
        assert "figures" in json.loads(answer.splitlines()[-1])
        text = "".join(json.loads(line).get("text", "") for line in answer.splitlines())
        assert text.strip() == printable(vlm.generate(None, as_turn(vlm, QUESTION), max_new_tokens=12))
