"""Mamba on the CPU: both of this project's operations against transformers' Mamba and mambapy, on the same inputs.

Transformers runs with its defaults where there is no GPU: its sequential scan in PyTorch (`use_mambapy=False`; its
associative scan takes part in compiled graphs only), its cached one-token step, no gradient checkpointing. Mambapy runs
its default, the parallel scan. The sides of a comparison take turns in one process, each with an untimed call before
every timed one, so that none pays for giving back what another has freed; what takes a peer seconds is measured once.
Every group of comparisons has a process of its own: how long a peer takes to get its memory depends on what ran before
(transformers' step of training at 256 tokens takes 240 to 590 ms). Peak memory is taken in a process of its own for
each side, as the most resident bytes during the second call above those before it. Errors are against the recurrence in
float64.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from harness import Row, finish, median_seconds
from harness_mamba import build_own, build_transformers, exact_scan, hidden_of, own_ops, peers, scan_inputs, scan_with
from harness_memory import ask, can_measure_memory, peak_of, resident
from torch import Tensor

from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.load import get_llm_backbone_and_tokenizer
from cobra.models.mamba import MambaState
from cobra.models.mamba.ops import use_op
from cobra.util import cli
from cobra.util.errors import UserError

# Width of the residual stream of the 2.8B model.
LARGE = 2560
# Of the model whose head takes part, and of the one that writes.
VOCABULARY, WRITING_VOCABULARY = 4096, 50_280
PREFILLS = (2_500, 5_000, 10_000, 20_000)
# Positions read at a time.
CHUNK = 1024

Runs = dict[str, Callable[[], object]]
Times = dict[str, float]


@dataclass
class MambaBenchmark:
    """Measure Mamba's operations and models against transformers and mambapy."""

    repeats: int = 7
    """Timed rounds of what takes less than a second."""
    few: int = 3
    """Timed rounds of the rest."""
    threads: int | None = None
    """Threads of torch; null leaves the machine's number."""
    part: str | None = None
    """Only measure this and print it, as the benchmark asks of a process of its own."""


class Measured:
    """Rows so far, and what made them."""

    def __init__(self, config: MambaBenchmark) -> None:
        self.config = config
        self.rows: list[Row] = []

    def compare(self, what: str, runs: Runs, asked: dict[tuple[str, str], str], once: Runs | None = None) -> Times:
        """Time sides in turn, and add a row for each pair that is asked for and one for each side's time.

        Args:
            what: Beginning of the rows' names.
            runs: By side.
            asked: Requirements by (own side, peer).
            once: Sides that take so long that they are called but once.
        """
        repeats = self.config.repeats if max(map(_seconds, runs.values())) < 1 else self.config.few
        seconds = median_seconds(runs, repeats, settle=True)
        seconds |= {side: _seconds(run) for side, run in (once or {}).items()}
        for (own, peer), required in asked.items():
            if own in seconds and peer in seconds:
                self.rows.append(Row(f"{what}, {own} against {peer}", seconds[peer] / seconds[own], "x", required))
        self.rows += [Row(f"{what}, {side}", 1e3 * value, "ms") for side, value in seconds.items()]
        return seconds


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure_scans(measured: Measured) -> None:
    """Time the scan alone."""
    inputs = scan_inputs(768, 512)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}

    @torch.no_grad()
    def forward(side: str) -> None:
        scan_with(side, inputs)

    def both(side: str) -> None:
        scan_with(side, leaves).sum().backward()

    sides = [*own_ops(), *peers()]
    measured.compare(
        "scan forward, 768 x 512",
        {side: partial(forward, side) for side in sides},
        {("torch", "transformers"): ">= 3.2", ("numba", "transformers"): ">= 14"},
    )
    measured.compare(
        "scan forward and backward, 768 x 512",
        {side: partial(both, side) for side in sides if side != "transformers"},
        {
            **{("torch", "transformers"): ">= 100", ("numba", "transformers"): ">= 300"},
            **{("torch", "mambapy"): ">= 2.8", ("numba", "mambapy"): ">= 2.8"},
        },
        once={"transformers": partial(both, "transformers")},
    )


@torch.no_grad()
def measure_forward(measured: Measured) -> None:
    """Time whole models and a large block without gradients, and compare what comes out."""
    own = build_own(256, 8, 8)
    x = torch.randn(1, 1024, 256)
    names = [*own_ops(), "transformers"]
    sides = hidden_of(own, names)
    expected = sides["torch"](x)
    difference = max((run(x) - expected).abs().max().item() for run in sides.values())
    measured.rows.append(Row("largest difference of hidden states between the sides", difference, "", "<= 1e-4"))
    measured.compare(
        "8 blocks forward, 1,024 x 256",
        {name: partial(run, x) for name, run in sides.items()},
        {("torch", "transformers"): ">= 2.3", ("numba", "transformers"): ">= 4"},
    )
    sides, x = hidden_of(build_own(LARGE, 1, 8), names), torch.randn(1, 768, LARGE)
    measured.compare(
        "a block of the 2.8B model forward, 768 tokens",
        {name: partial(run, x) for name, run in sides.items()},
        {(name, "transformers"): ">= 1.5" for name in own_ops()},
    )


def measure_training(measured: Measured) -> None:
    """Time a block, the head and the loss, forward and backward, at two lengths."""
    own = build_own(256, 1, VOCABULARY)
    sides: dict[str, Callable[[Tensor], Tensor]] = hidden_of(own)
    times: dict[int, Times] = {}
    for steps, required in ((256, ">= 7"), (1024, ">= 100")):
        x, targets = torch.randn(1, steps, 256), torch.randint(VOCABULARY, (steps,))

        def train(name: str, x: Tensor = x, targets: Tensor = targets) -> None:
            F.cross_entropy(own.logits(sides[name](x)).flatten(0, 1), targets).backward()

        slow = {"transformers"} & sides.keys() if steps == 1024 else set()
        times[steps] = measured.compare(
            f"a block and its head of {VOCABULARY:,}, forward and backward, {steps:,} x 256",
            {name: partial(train, name) for name in sides if name not in slow},
            {(name, "transformers"): required for name in own_ops()},
            once={name: partial(train, name) for name in slow},
        )
    for name in sides:
        growth, limit = times[1024][name] / times[256][name], "<= 6" if name in own_ops() else None
        measured.rows.append(Row(f"time at 1,024 tokens, of that at 256, {name}", growth, "x", limit))


@torch.no_grad()
def measure_writing(measured: Measured, tokens: int = 24) -> None:
    """Time one-token steps with the head, one row, greedily."""
    own = build_own(256, 8, WRITING_VOCABULARY).requires_grad_(False)

    def write(name: str) -> None:
        with use_op(name):
            decoder = open_decoder(own, MambaState.zeros(own.config, 1, "cpu"))
            token = torch.zeros(1, dtype=torch.long)
            for _ in range(tokens):
                token = decoder.read(token).argmax(-1)

    runs: Runs = {name: partial(write, name) for name in own_ops()}
    if "transformers" in peers():
        peer = build_transformers(own)
        start = peer(torch.zeros(1, 1, dtype=torch.long), use_cache=True).cache_params

        def write_theirs() -> None:
            token, cache = torch.zeros(1, 1, dtype=torch.long), start
            for _ in range(tokens):
                found = peer(token, cache_params=cache, use_cache=True)
                token, cache = found.logits[:, -1:].argmax(-1), found.cache_params

        runs["transformers"] = write_theirs
    asked = {(name, "transformers"): ">= 1.6" for name in own_ops()}
    times = measured.compare(f"{tokens} steps of 8 blocks and a head of {WRITING_VOCABULARY:,}", runs, asked)
    measured.rows += [Row(f"tokens a second, {name}", tokens / value, "1/s") for name, value in times.items()]


def measure_errors(measured: Measured) -> None:
    """Compare the own operations, gradients included, with float64."""
    for label, scales in (("", {}), (", dt x 100", {"dt_scale": 100.0}), (", A x 10", {"a_scale": 10.0})):
        inputs = scan_inputs(256, 128, **scales)
        sides: list[Callable[[dict[str, Tensor]], Tensor]] = [exact_scan]
        sides += [partial(scan_with, name) for name in own_ops()]
        found = []
        for run in sides:
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
            y = run(leaves)
            y.sum().backward()
            found.append({"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()})
        for name, results in zip(own_ops(), found[1:], strict=True):
            errors = [_error(results[key], found[0][key]) for key in results]
            worst = math.inf if any(map(math.isnan, errors)) else max(errors)
            measured.rows.append(Row(f"error of the scan and its gradients{label}, {name}", worst, "", "<= 5e-6"))


def _error(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None and expected is not None
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def call_for_memory(what: str) -> dict[str, list[float]]:
    """Make one call, in a process of its own, and return figures by name."""
    kind, _, name = what.partition(" ")
    if kind == "prefill":
        return prefill_figures(name)
    # Only the side that is asked for is built: its parameters are there before, and nothing else is.
    own = build_own(LARGE, 1, 8)
    run = hidden_of(own, [name])[name]
    x = torch.randn(1, 1024, LARGE)
    with torch.set_grad_enabled(kind == "training"):
        # What libraries make once.
        run(x[:, :8]).sum()
        before = resident()
        return {kind: [peak_of(lambda: run(x).sum().backward() if kind == "training" else run(x)) - before]}


@torch.no_grad()
def prefill_figures(name: str) -> dict[str, list[float]]:
    """Return bytes and seconds of reading `PREFILLS` tokens with cobra-tiny, and bytes of the last without chunks."""
    llm = get_llm_backbone_and_tokenizer("mamba-0.5m-zephyr", 512)[0].llm.eval()

    def read(ids: Tensor, chunk: int) -> None:
        state = MambaState.zeros(llm.config, 1, "cpu")
        for piece in ids.split(chunk, 1):
            llm(llm.embed(piece), state)

    texts = [torch.randint(2, 500, (1, steps)) for steps in PREFILLS]
    with use_op(name):
        # What libraries make once.
        read(texts[0][:, :16], CHUNK)
        before = resident()
        # The shortest first, and all before anything is timed: what a long one leaves resident counts with the next.
        peaks = [peak_of(partial(read, ids, CHUNK)) - before for ids in texts]
        # The least of several: what else the machine does must not look like growth.
        rounds = [[_seconds(partial(read, ids, CHUNK)) for ids in texts] for _ in range(5)]
        return {
            "bytes": [float(peak) for peak in peaks],
            "seconds": [min(times) for times in zip(*rounds, strict=True)],
            "bytes at once": [peak_of(partial(read, texts[-1], PREFILLS[-1])) - before],
        }


def measure_memory(measured: Measured) -> None:
    """Measure memory, each side in a process of its own."""
    for kind, peer, label, limit in (
        ("forward", "transformers", "a block of the 2.8B model forward", "<= 0.3333"),
        ("training", "mambapy", "a block of the 2.8B model forward and backward", "<= 0.25"),
    ):
        sides = [name for name in (*own_ops(), peer) if name in (*own_ops(), *peers())]
        found = {name: ask(__file__, measured.config, part=f"{kind} {name}")[kind][0] for name in sides}
        for name, value in found.items():
            if name != peer and peer in found:
                ratio = value / found[peer]
                measured.rows.append(Row(f"memory of {label}, {name} against {peer}", ratio, "x", limit))
        measured.rows += [Row(f"memory of {label}, {name}", value / 2**20, "MiB") for name, value in found.items()]


def measure_prefill(measured: Measured) -> None:
    """Measure how memory and time grow with a prompt."""
    for name in own_ops():
        found = ask(__file__, measured.config, part=f"prefill {name}")
        memory, times = found["bytes"], found["seconds"]
        label = f"{PREFILLS[-1]:,} tokens of a prompt"
        # The slope of a line through log(tokens) and log(seconds): 1 is linear.
        x, y = torch.tensor(PREFILLS).double().log(), torch.tensor(times).double().log()
        slope = (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()
        measured.rows += [
            Row(f"{label}: memory, of that of {PREFILLS[0]:,}, {name}", memory[-1] / memory[0], "x", "<= 1.5"),
            Row(f"{label}: exponent of the time's growth, {name}", slope, "", "<= 1.1"),
            Row(f"{label}: memory, {name}", memory[-1] / 2**20, "MiB"),
            Row(f"{label}: memory without chunks, {name}", found["bytes at once"][0] / 2**20, "MiB"),
            Row(f"{label}: time, {name}", times[-1], "s"),
        ]


@contextmanager
def told(what: str) -> Iterator[None]:
    """Say on the error stream how long a part took."""
    begin = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)


PARTS: dict[str, Callable[[Measured], None]] = {
    "scans": measure_scans,
    "whole models forward": measure_forward,
    "a step of training": measure_training,
    "writing": measure_writing,
    "errors": measure_errors,
}


def measure_part(config: MambaBenchmark, part: str) -> list[dict[str, Any]] | dict[str, list[float]]:
    """Measure one of `PARTS` and return its rows, or memory."""
    if part not in PARTS:
        return call_for_memory(part)
    measured = Measured(config)
    PARTS[part](measured)
    return [asdict(row) for row in measured.rows]


def main(config: MambaBenchmark) -> None:
    """Measure, and print the rows."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.part is not None:
        print(json.dumps(measure_part(config, config.part)))
        return
    if "transformers" not in peers():
        raise UserError("transformers is not installed: pip install transformers")
    for name in (name for name in ("numba", "mambapy") if find_spec(name) is None):
        print(f"rows of {name} are left out: it is not installed (pip install {name})", file=sys.stderr)
    measured = Measured(config)
    if can_measure_memory():
        for measure in (measure_memory, measure_prefill):
            with told(measure.__name__.removeprefix("measure_")):
                measure(measured)
    for part in PARTS:
        with told(part):
            measured.rows += [Row(**row) for row in ask(__file__, config, part=part)]
    finish(f"mamba_ops: {torch.get_num_threads()} threads", measured.rows)


if __name__ == "__main__":
    cli.run(main, MambaBenchmark)
