"""Many clients at once: each gets the answer that it gets alone, whatever the others do."""

import json
import random
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from PIL import Image
from scratch import enliven, picture, scratch_vlm

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from talk_page import Served

import cobra
from cobra.models.vlms import as_turn
from cobra.talk.options import TalkFlags

WORDS = "red green blue circle square what is in the picture how many shapes".split()


@pytest.fixture(scope="module")
def vlm():
    return enliven(scratch_vlm(llm_max_length=1024))


@pytest.fixture(scope="module")
def server(vlm):
    with Served(vlm, TalkFlags(max_new_tokens=16), "tiny") as started:
        yield started


def words(number, count):
    chance = random.Random(number)
    return " ".join(chance.choice(WORDS) for _ in range(count))


def ask(server, text, **fields):
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]} | fields
    answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=200)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


class Nuisance:
    """A client that leaves in the middle of an answer, stalls in the middle of a request, or sends garbage."""

    def __init__(self, port, number, ended):
        self._port, self._number, self._ended = port, number, ended
        self.tries = 0

    def run(self):
        body = json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "red"}], "stream": True, "max_tokens": 4096}
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        chance = random.Random(self._number)
        while not self._ended.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
                if self._number % 3 == 0:
                    connection.sendall((head + body).encode())
                    connection.recv(1000)
                elif self._number % 3 == 1:
                    connection.sendall((head + body[: chance.randrange(len(body))]).encode())
                    self._ended.wait()
                else:
                    connection.sendall(chance.choice((b"", head.encode())) + chance.randbytes(chance.randrange(3000)))
            self.tries += 1
            self._ended.wait(chance.random())


def test_a_hundred_clients_that_leave_stall_or_send_garbage_disturb_nobody(vlm, server, capsys):
    texts = [words(number, 12) for number in range(16)]
    expected = [vlm.generate(None, as_turn(vlm, text), max_new_tokens=16) for text in texts]
    ended = threading.Event()
    nuisances = [Nuisance(server.port, number, ended) for number in range(100)]
    with ThreadPoolExecutor(100) as crowd, ThreadPoolExecutor(8) as clients:
        for nuisance in nuisances:
            crowd.submit(nuisance.run)
        try:
            for _ in range(2):
                assert list(clients.map(lambda text: ask(server, text), texts)) == expected
        finally:
            ended.set()
    assert sum(nuisance.tries > 0 for nuisance in nuisances) > 90
    assert ask(server, texts[0]) == expected[0]
    while server.engine.jobs():
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_sixty_four_clients_with_prompts_of_one_to_seven_hundred_tokens_are_answered_as_alone(vlm, server):
    texts = [words(number, 1 + number * 11) for number in range(64)]
    lengths = [len(vlm.encode(text)) for text in texts]
    assert min(lengths) <= 3 and max(lengths) >= 700
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
    for fields in ({}, options):
        sampling = {name: value for name, value in fields.items() if name != "do_sample"}
        expected = [
            vlm.generate(None, as_turn(vlm, text), max_new_tokens=48, **fields | ({"seeds": [seed]} if fields else {}))
            for seed, text in enumerate(texts)
        ]
        with ThreadPoolExecutor(64) as clients:
            found = [
                clients.submit(ask, server, text, max_tokens=48, seed=seed, **sampling)
                for seed, text in enumerate(texts)
            ]
            assert [answer.result() for answer in found] == expected


def test_the_documents_examples_run(monkeypatch, tmp_path, capsys):
    openai = pytest.importorskip("openai", reason="the client is not installed")
    document = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    [body] = re.findall(r"-d '(.*?)'\n", document, re.DOTALL)
    picture(1).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    vlm = cobra.load("cobra-tiny", device="cpu")
    with Served(vlm, name="cobra-tiny") as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
        monkeypatch.setattr(openai, "OpenAI", lambda base_url, api_key: client)
        exec(compile(example, "docs/serve.md", "exec"), {})
        image = Image.open("photo.png")
        expected = vlm.generate(image, as_turn(vlm, "What is in the picture?"), max_new_tokens=8)
        assert capsys.readouterr().out == expected != ""
        answer = requests.post(f"{served.url}/v1/chat/completions", data=body, timeout=100).json()
        assert answer["choices"][0]["message"]["content"] == vlm.ask(None, "What is in the picture?", max_new_tokens=8)
