"""Measure the Triton kernels of Mamba on a GPU in ten minutes: errors, same bits, times, memory, decoding.

Every figure is printed as a JSON row as soon as it is there, and a page of all of them at the end. Run without a GPU,
`--dry_run true` goes through the same program in Triton's interpreter, at sizes of a few numbers.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.load import cast
from cobra.models.mamba import MambaConfig, MambaLM, MambaState
from cobra.models.mamba.ops import cuda_ops, torch_ops, use_op
from cobra.util import cli
from cobra.util.errors import UserError

STATES = 16
# Times above which the model of the kernels is wrong, in ms, at 16 rows of 2,777 positions of width 5,120.
MOST_FORWARD, MOST_BACKWARD = 2.5, 8.0


@dataclass
class GpuBenchmark:
    """Measure the Triton kernels of Mamba on a GPU."""

    dry_run: bool = False
    """Run in Triton's interpreter on the CPU, at tiny sizes; times then mean nothing."""
    out: Path | None = None
    """Also write the page to this file."""
    only_small: bool = False
    """Run the small case alone, as under compute-sanitizer."""


@dataclass
class Report:
    """The figures so far, each printed as it comes."""

    rows: list[tuple[str, float | str, str]] = field(default_factory=list)

    def add(self, name: str, value: float | str, unit: str = "") -> None:
        """Add a figure, and print it as a JSON row at once."""
        self.rows.append((name, value, unit))
        print(json.dumps({"name": name, "value": value, "unit": unit}), flush=True)

    def page(self) -> str:
        """Return all figures as a table of Markdown."""
        shown = (
            f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} {unit} |"
            for name, value, unit in self.rows
        )
        return "\n".join(["| What | Figure |", "|---|---|", *shown])


class Bench:
    """The kernels on one device."""

    def __init__(self, device: torch.device, report: Report) -> None:
        self.device, self.report = device, report
        self.ops: Any = import_module("cobra.models.mamba.ops.triton_ops")

    def inputs(self, rows: int, steps: int, width: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        """Return u, dt, A_log, B, C, D, z and the step bias of a scan; z is a part of a wider tensor, as in a model."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        both, reads = normal(rows, steps, 2 * width), normal(rows, steps, 2 * STATES)
        u, z = both.chunk(2, -1)
        B, C = reads.split(STATES, -1)
        A_log = torch.arange(1.0, STATES + 1).log().repeat(width, 1)
        exact = [A_log, normal(width), normal(width) - 4]
        lower = [u, normal(rows, steps, width), B, C, z]
        u, dt, B, C, z = (tensor.to(self.device, dtype) for tensor in lower)
        A_log, D, bias = (tensor.to(self.device) for tensor in exact)
        return [u, dt, A_log, B, C, D, z, bias]

    def scan(self, ops: Any, inputs: list[Tensor], wide: bool = False) -> list[Tensor]:
        """Return y, the last state and the gradients of a scan; in fp64 if `wide`."""
        leaves = [(tensor.double() if wide else tensor).detach().clone().requires_grad_() for tensor in inputs]
        y, last = ops.selective_scan(*leaves, None, None)
        gradients = torch.autograd.grad(y.float().square().sum() + last.float().sum(), leaves)
        return [y.detach(), last.detach(), *gradients]

    def check(self, rows: int, steps: int, width: int, dtype: torch.dtype) -> None:
        """Report the largest error against fp64, as a part of the largest value, and whether bits repeat."""
        name = f"({rows}, {steps}, {width}) {str(dtype).removeprefix('torch.')}"
        inputs = self.inputs(rows, steps, width, dtype)
        start = time.perf_counter()
        found = self.scan(self.ops, inputs)
        self.wait()
        self.report.add(f"first call, {name}", time.perf_counter() - start, "s")
        expected = self.scan(torch_ops, inputs, wide=True)
        errors = [
            ((value.double() - exact).abs().max() / exact.abs().max()).item()
            for value, exact in zip(found, expected, strict=True)
        ]
        self.report.add(f"largest error of outputs, {name}", max(errors[:2]))
        self.report.add(f"largest error of gradients, {name}", max(errors[2:]))
        again = self.scan(self.ops, inputs)
        same = all(torch.equal(value, other) for value, other in zip(found, again, strict=True))
        self.report.add(f"same bits twice, {name}", "yes" if same else "NO")

    def measure(self, rows: int, steps: int, width: int, repeats: int, ops: Any = None, whose: str = "") -> None:
        """Report the times of both passes, beside a copy of as many bytes, and the memory that they take."""
        name = f"{whose}({rows}, {steps}, {width}) bfloat16"
        leaves = [tensor.detach().requires_grad_() for tensor in self.inputs(rows, steps, width, torch.bfloat16)]
        scan = (ops or self.ops).selective_scan
        y, _ = scan(*leaves, None, None)
        gradient = torch.randn_like(y)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        before = self.allocated()
        with torch.no_grad():
            self.report.add(f"forward, {name}", self.time(lambda: scan(*leaves, None, None), repeats), "ms")
        backward = self.time(lambda: torch.autograd.grad(y, leaves, gradient, retain_graph=True), repeats)
        self.report.add(f"backward, {name}", backward, "ms")
        if self.device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
            self.report.add(f"memory beside inputs, {name}", peak, "MiB")
        # The forward pass reads u, dt and z and writes y; the backward pass reads four and writes three.
        block = torch.empty_like(y)
        copy = self.time(lambda: block.copy_(y), repeats)
        self.report.add(f"copy of the forward pass's bytes, {name}", 2 * copy, "ms")
        self.report.add(f"copy of the backward pass's bytes, {name}", 3.5 * copy, "ms")

    def measure_splits(self, rows: int, steps: int, width: int, repeats: int) -> None:
        """Report the times with the states of a channel whole and split over warps, whatever the table says."""
        scan = import_module("cobra.models.mamba.ops.triton_scan")
        for parts in (1, import_module("cobra.models.mamba.ops.triton_table").PARTS):
            with patch.object(scan, "lookup", lambda *size, parts=parts: parts):
                self.measure(rows, steps, width, repeats, whose=f"{parts} warps a channel ")

    def decode(self, config: MambaConfig, steps: int) -> None:
        """Report the time of a token through all blocks, captured as a graph where that is possible."""
        with torch.device(self.device):
            llm = MambaLM(config).eval().requires_grad_(False)
        cast(llm, torch.bfloat16)
        state = MambaState.zeros(config, 1, self.device)
        tokens = torch.zeros(1, dtype=torch.long, device=self.device)
        with torch.no_grad(), closing(open_decoder(llm, state)) as decoder:
            self.report.add("decoder", type(decoder).__name__)
            took = self.time(lambda: decoder.read(tokens), steps)
        self.report.add(f"a token of one row, {config.n_layer} blocks, bfloat16", took, "ms")

    def time(self, run: Callable[[], Any], repeats: int) -> float:
        """Return the median time of a call in ms, after two that are not counted."""
        for _ in range(2 if self.device.type == "cuda" else 0):
            run()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(1000 * (time.perf_counter() - start))
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Return the bytes that are allocated on a GPU."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def main(config: GpuBenchmark) -> None:
    """Measure everything, and print the page.

    Raises:
        UserError: There is no GPU, or the kernels do not work on it.
    """
    if config.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton decides for a whole process, when it is imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"TRITON_INTERPRET": "1"})
    report = Report()
    device = find_device(config, report)
    bench, repeats = Bench(device, report), 1 if config.dry_run else 20
    small = (1, 9, 8) if config.dry_run else (2, 333, 200)
    with use_op(bench.ops):
        for dtype in (torch.float32, torch.bfloat16):
            bench.check(*small, dtype)
        if config.only_small:
            return
        large = (1, 3, 8) if config.dry_run else (1, 2777, 5120)
        bench.check(*large, torch.bfloat16)
        shapes = (
            [(1, 2, 8)] if config.dry_run else [(16, 2777, 5120), (4, 2777, 5120), (1, 2777, 5120), (1, 1024, 5120)]
        )
        for shape in shapes:
            bench.measure(*shape, repeats)
        for rows in (1,) if config.dry_run else (1, 2, 4, 6, 8):
            bench.measure_splits(rows, *shapes[0][1:], repeats)
        sizes = MambaConfig(8, 2, 64) if config.dry_run else MambaConfig(2560, 64, 50_280)
        bench.decode(sizes, repeats)
    if device.type == "cuda":
        measure_vendor(bench, repeats)
        sanitize(report)
    finish(config, report)


def find_device(config: GpuBenchmark, report: Report) -> torch.device:
    """Return the device, and report what it is."""
    if config.dry_run:
        report.add("device", "CPU, Triton's interpreter: nothing is measured")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("there is no GPU here: --dry_run true goes through the program in Triton's interpreter")
    device = torch.device("cuda", 0)
    report.add("device", torch.cuda.get_device_name(device))
    report.add("torch", torch.__version__)
    report.add("triton", import_module("triton").__version__)
    start = time.perf_counter()
    reason = import_module("cobra.models.mamba.ops.triton_ops").failure(0)
    report.add("probe of all kernels, compiled if they were not", time.perf_counter() - start, "s")
    if reason is not None:
        raise UserError(f"the Triton kernels of Mamba do not work on this GPU: {reason}")
    return device


def measure_vendor(bench: Bench, repeats: int) -> None:
    """Measure the vendor's kernels at the same sizes where they can be had."""
    reason = "mamba-ssm is not installed" if find_spec("mamba_ssm") is None else cuda_ops.failure(0)
    if reason is not None:
        bench.report.add("vendor's kernels", f"not measured: {reason}")
        return
    bench.measure(16, 2777, 5120, repeats, cuda_ops, "vendor ")


def sanitize(report: Report) -> None:
    """Run the small case under compute-sanitizer, where CUDA's tools are there."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        report.add("compute-sanitizer", "not installed")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__, "--only_small", "true"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    )
    report.add("compute-sanitizer, small case", "no error" if done.returncode == 0 else done.stdout[-500:])


def finish(config: GpuBenchmark, report: Report) -> None:
    """Compare times with what the design expects, print the page and write it."""
    values = {name: value for name, value, _ in report.rows}
    for part, most in (("forward", MOST_FORWARD), ("backward", MOST_BACKWARD)):
        value = values.get(f"{part}, (16, 2777, 5120) bfloat16")
        if isinstance(value, float):
            report.add(
                f"{part} at most {most} ms", "yes" if value <= most else "NO: look at the reasons of stalls first"
            )
    print(report.page(), flush=True)
    if config.out is not None:
        config.out.write_text(report.page() + "\n")


if __name__ == "__main__":
    cli.run(main, GpuBenchmark)
