"""The server's throughput and time to first token at 1, 8 and 64 clients, against the commit before and transformers.

A model of cobra-tiny's size at random weights, which never ends an answer by itself, is served on loopback and asked
for streamed greedy answers of so many tokens, by clients that ask one question after the other. Sides: OpenAI's API of
this project; this project's page of the commit before it had an engine, which writes one answer at a time; and
`transformers serve` with its MambaForCausalLM on the same weights, without continuous batching, which it has for
attention alone. Clients and server share the machine's cores.
"""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from harness import ROOT, Row, finish, worktree
from harness_serving import (
    MODEL,
    Ask,
    Load,
    Reply,
    ask_api,
    ask_page,
    bad_clients,
    build_model,
    data_url,
    own_server,
    peer_server,
    run_clients,
    save_peer,
    save_run,
)
from PIL import Image

from cobra.models.vlms import CobraVLM, as_turn
from cobra.util import cli
from cobra.util.numbers import counted

CLIENTS = (1, 8, 64)
OWN, PAGE, PEER = "own", "page before", "transformers serve"
# Longest prompt of the uneven ones, in tokens.
LONGEST = 700
WORDS = "red green blue yellow circle square star what is in the picture how many shapes are there left of".split()


@dataclass
class ServingBenchmark:
    """Measure the server against what was before, and against transformers' own."""

    tokens: int = 128
    """Tokens of an answer."""
    repeats: int = 5
    """Timed rounds of this project's sides; transformers' has one."""
    before: str = "2fbfc96"
    """Commit whose page is measured too; left out where this is no clone that has it."""
    bad_clients: int = 100
    """Clients that leave, stall or send garbage beside eight others."""


def make_texts(vlm: CobraVLM, lengths: Sequence[int]) -> list[str]:
    """Return questions of at least so many tokens each, all different."""
    texts = []
    for number, length in enumerate(lengths):
        text, place = "", number
        while len(vlm.encode(text)) < length:
            text, place = f"{text} {WORDS[place * place % len(WORDS)]}".strip(), place + 1
        texts.append(text)
    return texts


def measure(sides: dict[str, Ask], texts: Sequence[str], repeats: int) -> dict[str, Load]:
    """Return the median round, by tokens a second, of every side and number of clients; sides take turns."""
    loads: dict[str, list[Load]] = defaultdict(list)
    for ask in sides.values():
        ask(texts[0])
    for round_number in range(repeats):
        for side, ask in sides.items():
            # Its round takes half a minute, and the differences are large.
            if side == PEER and round_number:
                continue
            for clients, each in zip(CLIENTS, (1, 1, 1) if side == PEER else (6, 3, 1), strict=True):
                loads[f"{side}, {clients}"].append(run_clients(clients, each, ask, texts))
    return {name: sorted(rounds, key=lambda load: load.rate)[len(rounds) // 2] for name, rounds in loads.items()}


def count_differing(vlm: CobraVLM, port: int, tokens: int) -> tuple[int, Load]:
    """Return how many of 64 clients, with prompts of 1 to 700 tokens at once, get another answer than alone."""
    texts = make_texts(vlm, [1 + number * (LONGEST - 1) // 63 for number in range(64)])
    image = Image.linear_gradient("L").resize((48, 48)).convert("RGB")
    images = {text: image if number % 4 == 3 else None for number, text in enumerate(texts)}
    urls = {text: None if images[text] is None else data_url(image) for text in texts}
    load = run_clients(64, 1, lambda text: ask_api(port, MODEL, text, tokens, urls[text]), texts)
    alone = [vlm.generate(images[text], as_turn(vlm, text), max_new_tokens=tokens) for text in texts]
    return sum(reply.text != text for [reply], text in zip(load.replies, alone, strict=True)), load


def longest_gap(port: int, tokens: int, texts: Sequence[str], long_text: str) -> tuple[float, float]:
    """Return the longest silence in an answer, in seconds: alone, and while prompts of 700 tokens come in."""
    alone = ask_api(port, MODEL, texts[0], 8 * tokens).gap

    def ask(text: str) -> Reply:
        return ask_api(port, MODEL, text, 8 * tokens if text == texts[0] else 1)

    loads = run_clients(8, 1, ask, [texts[0], *[long_text + f" {number}" for number in range(7)]])
    return alone, loads.replies[0][0].gap


def rows_of(loads: dict[str, Load]) -> list[Row]:
    """Return the rows of all sides and numbers of clients."""
    rate = {name: load.rate for name, load in loads.items()}
    first = {name: statistics.median(load.firsts) for name, load in loads.items()}
    rows = [
        Row("8 clients against one, tokens a second", rate[f"{OWN}, 8"] / rate[f"{OWN}, 1"], "x", ">= 4"),
        Row("64 clients against one, tokens a second", rate[f"{OWN}, 64"] / rate[f"{OWN}, 1"], "x"),
    ]
    for side in (PAGE, PEER):
        if f"{side}, 1" not in loads:
            continue
        for clients in CLIENTS:
            own, other = f"{OWN}, {clients}", f"{side}, {clients}"
            asked = ">= 4" if clients > 1 else None
            who = counted(clients, "client")
            rows.append(Row(f"{who}, tokens a second against {side}", rate[own] / rate[other], "x", asked))
            rows.append(Row(f"{who}, time to first text against {side}", first[own] / first[other], "x"))
    for name, load in loads.items():
        side, _, count = name.partition(", ")
        who = f"{side}, {counted(int(count), 'client')}"
        rows.append(Row(f"tokens a second, {who}", rate[name], "1/s"))
        rows.append(Row(f"time to first text, {who}, median", 1000 * first[name], "ms"))
        rows.append(Row(f"time to first text, {who}, longest", 1000 * load.firsts[-1], "ms"))
    return rows


def main(config: ServingBenchmark) -> None:
    """Measure, and print the rows."""
    vlm = build_model(1024)
    texts = make_texts(vlm, [12] * 64)
    expected = {text: vlm.generate(None, as_turn(vlm, text), max_new_tokens=config.tokens) for text in texts}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = save_run(vlm, folder)
        port = stack.enter_context(own_server(ROOT, run, config.tokens))
        sides: dict[str, Ask] = {OWN: lambda text: ask_api(port, MODEL, text, config.tokens)}
        before = stack.enter_context(worktree(config.before, folder / "before"))
        if before is not None:
            sides[PAGE] = partial(ask_page, stack.enter_context(own_server(before, run, config.tokens)))
        if find_spec("fastapi") is not None:
            saved = save_peer(vlm, folder)
            peer_port = stack.enter_context(peer_server(saved))
            sides[PEER] = lambda text: ask_api(peer_port, str(saved), text, config.tokens)
        loads = measure(sides, texts, config.repeats)
        wrong = {
            side: sum(sides[side](text).text != expected[text] for text in texts)
            for side in (OWN, PEER)
            if side in sides
        }
        differing, uneven = count_differing(vlm, port, config.tokens)
        alone_gap, gap = longest_gap(port, config.tokens, texts, make_texts(vlm, [LONGEST])[0])
        with bad_clients(port, config.bad_clients):
            beside = run_clients(8, 3, sides[OWN], texts)
        disturbed = sum(
            reply.text != expected[texts[client * 3 + turn]]
            for client, replies in enumerate(beside.replies)
            for turn, reply in enumerate(replies)
        )
        after = run_clients(8, 3, sides[OWN], texts)
    name = f"{config.bad_clients} clients that leave, stall or send garbage"
    finish(
        f"serving: answers of {config.tokens} tokens, a model of cobra-tiny's size, {torch.get_num_threads()} threads",
        [
            *rows_of(loads),
            # Weights at random are sensitive: another library's rounding is enough for another token after a while.
            *(
                Row(f"answers that are not generate's, {side}", count, "", "<= 0" if side == OWN else None)
                for side, count in wrong.items()
            ),
            Row(
                f"64 clients, prompts of 1 to {LONGEST} tokens: answers that differ from those alone",
                differing,
                "",
                "<= 0",
            ),
            Row(f"64 clients, prompts of 1 to {LONGEST} tokens: tokens a second", uneven.rate, "1/s"),
            Row("longest silence in an answer of one client alone", 1000 * alone_gap, "ms"),
            Row(f"the same while 7 prompts of {LONGEST} tokens come in", 1000 * gap, "ms"),
            Row(f"answers of 8 clients that differ beside {name}", disturbed, "", "<= 0"),
            Row(f"tokens a second of 8 clients beside {name}", beside.rate, "1/s"),
            Row("tokens a second of 8 clients after them", after.rate, "1/s"),
        ],
    )


if __name__ == "__main__":
    cli.run(main, ServingBenchmark)
