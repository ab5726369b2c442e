"""The sides of benchmarks/serving.py: servers as processes, and clients that measure them."""

import base64
import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness_mamba import build_transformers
from PIL import Image

from cobra.conf import ModelConfig
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.load import build_vlm
from cobra.models.vlms import CobraVLM

MODEL = "benchmark"
PEER = "transformers"

_TIMEOUT = 600.0
# The Zephyr format, as this project's prompts have it.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>\n{{ message['content'] }}<|endoftext|>\n<|assistant|>\n{% endfor %}"
)


@torch.no_grad()
def build_model(longest: int) -> CobraVLM:
    """Build a model of cobra-tiny's size at random weights that writes varied text without an end; always the same."""
    torch.manual_seed(0)
    ids = {"vision_backbone_id": "dinosiglip-vit-tiny-48px-init", "llm_backbone_id": "mamba-0.5m-init-zephyr"}
    config: Any = ModelConfig.get_choice_class("cobra-tiny")()
    vlm = build_vlm(vars(config) | ids | {"llm_max_length": longest}, {}).eval().requires_grad_(False)
    llm = vlm.llm_backbone.llm
    llm.backbone.norm_f.weight.copy_(torch.randn(llm.config.d_model))
    llm.backbone.embedding.weight *= 5
    for name, weight in llm.named_parameters():
        if name.endswith("out_proj.weight"):
            weight.mul_(8)
    # Its score is 0, and the best is far above.
    llm.backbone.embedding.weight[vlm.llm_backbone.tokenizer.eos_token_id] = 0
    return vlm


def save_run(vlm: CobraVLM, folder: Path) -> Path:
    """Write the model as a run directory under :data:`MODEL`, which `serve` takes."""
    run = folder / MODEL
    (run / "checkpoints").mkdir(parents=True)
    config: Any = ModelConfig.get_choice_class("cobra-tiny")()
    fields = {name: value for name, value in vars(config).items() if isinstance(value, str | int | float | bool)}
    fields |= {
        "vision_backbone_id": vlm.vision_backbone.identifier,
        "llm_backbone_id": vlm.llm_backbone.identifier,
        "llm_max_length": vlm.max_text_length,
    }
    (run / "config.json").write_text(json.dumps({"model": fields}))
    modules = {"projector": vlm.projector, "llm_backbone": vlm.llm_backbone, "vision_backbone": vlm.vision_backbone}
    states = {name: module.state_dict() for name, module in modules.items()}
    torch.save({"model": states}, run / "checkpoints" / "latest-checkpoint.pt")
    return run


def save_peer(vlm: CobraVLM, folder: Path) -> Path:
    """Write the language model as transformers' MambaForCausalLM, with its tokenizer and the same prompt format."""
    saved = folder / PEER
    llm = vlm.llm_backbone.llm
    peer = build_transformers(llm, state_size=llm.config.d_state, eos_token_id=0, pad_token_id=0, bos_token_id=0)
    peer.save_pretrained(saved)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_FOLDER / name, saved)
    (saved / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    return saved


@contextmanager
def own_server(root: Path, run: Path, tokens: int) -> Iterator[int]:
    """Serve a run directory with the sources in a folder; the value is the port."""
    command = [sys.executable, "scripts/serve.py", "--model_path", str(run), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [*command, "--max_new_tokens", str(tokens)], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = next((match for line in process.stdout if (match := re.search(r"open http://\S+?:(\d+)", line))), None)
        assert found is not None, "the server has not begun"
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


@contextmanager
def peer_server(folder: Path) -> Iterator[int]:
    """Serve a folder by `transformers serve`; the value is the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", script, "serve", str(folder), "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        assert process.poll() is None, "transformers serve has ended"
        yield port
    finally:
        process.terminate()
        process.wait()


@dataclass
class Reply:
    """The answer to one request; times are in seconds from its sending."""

    text: str
    tokens: int
    first: float
    """Time of the first text."""
    seconds: float
    gap: float = 0.0
    """Longest time between two pieces."""


Ask = Callable[[str], Reply]


def data_url(image: Image.Image) -> str:
    """Return a picture as the API takes it."""
    data = io.BytesIO()
    image.save(data, "png")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def ask_api(port: int, model: str, text: str, tokens: int, image: str | None = None) -> Reply:
    """Ask for a streamed greedy answer by OpenAI's API; raise a ValueError where it is refused."""
    content: Any = text
    if image is not None:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": True, "temperature": 0}
    body |= {"max_tokens": tokens, "stream_options": {"include_usage": True}}
    counted = 0

    def read(line: bytes) -> str:
        nonlocal counted
        if not line.startswith(b"data: {"):
            return ""
        event = json.loads(line[6:])
        if "error" in event:
            raise ValueError(event["error"])
        if event.get("usage"):
            counted = event["usage"]["completion_tokens"]
        return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))

    reply = _ask(port, "/v1/chat/completions", body, read)
    # A server that does not count has written as many as it was asked for.
    reply.tokens = counted or tokens
    return reply


def ask_page(port: int, text: str) -> Reply:
    """Ask a question on the page."""
    counted = 0

    def read(line: bytes) -> str:
        nonlocal counted
        told = json.loads(line)
        if "error" in told:
            raise ValueError(told["error"])
        if "figures" in told:
            counted = told["figures"]["written"]
        return str(told.get("text", ""))

    body = {"question": text, "conversation": None, "search": "none", "beams": 1}
    reply = _ask(port, "/ask", body, read)
    reply.tokens = counted
    return reply


def _ask(port: int, path: str, body: Any, read: Callable[[bytes], str]) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    begin = last = time.perf_counter()
    pieces: list[str] = []
    first = gap = 0.0
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(response.read())
        while line := response.readline():
            piece = read(line) if line.strip() else ""
            if not piece:
                continue
            now = time.perf_counter()
            first, gap = (first, max(gap, now - last)) if pieces else (now - begin, 0.0)
            last = now
            pieces.append(piece)
    finally:
        connection.close()
    return Reply("".join(pieces).strip(), 0, first, time.perf_counter() - begin, gap)


@dataclass
class Load:
    """The replies to some clients at once, by client, and the seconds that all of it took."""

    replies: list[list[Reply]]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return sum(reply.tokens for replies in self.replies for reply in replies) / self.seconds

    @property
    def firsts(self) -> list[float]:
        """Times to the first text, sorted."""
        return sorted(reply.first for replies in self.replies for reply in replies)


def run_clients(clients: int, each: int, ask: Ask, texts: Sequence[str]) -> Load:
    """Let clients ask at once, each one question after the other."""
    ready = threading.Barrier(clients + 1)

    def client(number: int) -> list[Reply]:
        ready.wait()
        return [ask(texts[(number * each + turn) % len(texts)]) for turn in range(each)]

    with ThreadPoolExecutor(clients) as pool:
        results = [pool.submit(client, number) for number in range(clients)]
        ready.wait()
        begin = time.perf_counter()
        replies = [result.result() for result in results]
        return Load(replies, time.perf_counter() - begin)


@contextmanager
def bad_clients(port: int, count: int) -> Iterator[None]:
    """Let clients leave in the middle of an answer, stall in the middle of a request, or send garbage, by turns."""
    ended = threading.Event()
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "red"}], "stream": True, "max_tokens": 4096}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

    def misbehave(number: int) -> None:
        chance = random.Random(number)
        while not ended.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                if number % 3 == 0:
                    connection.sendall((head + body).encode())
                    connection.recv(1000)
                elif number % 3 == 1:
                    connection.sendall((head + body[: len(body) // 2]).encode())
                    ended.wait()
                else:
                    connection.sendall(chance.choice((b"", b"POST /v1/chat/completions HTTP/1.1\r\n\r\n")))
                    connection.sendall(chance.randbytes(chance.randrange(2000)))
            ended.wait(chance.random())

    threads = [threading.Thread(target=misbehave, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    # All of them are connected.
    time.sleep(1)
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
