"""Compile the kernels of the selective scan for GPUs that are not there, and count what they take.

Registers, stack, spills and shared memory are those that NVIDIA's tools in Triton's wheel tell; instructions are those
of the loops, for a warp and a step of a state, in the sizes of cobra+3b: 5,120 channels of bf16 or fp32, 16 states.
"""

import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.append(str(Path(__file__).resolve().parents[1]))

from harness import Row, finish

from cobra.models.mamba.ops import triton_scan, triton_scan_backward
from cobra.util import cli

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_WIDTH, _STATES, _UNROLL = 5120, 16, 8
_KERNELS = {"forward": triton_scan.scan_forward, "backward": triton_scan_backward.scan_backward}
_DTYPES = ("bf16", "fp32")
# Tensors over the channels, which have the dtype that is given.
_GIVEN = frozenset("u dt z out grad du d_dt dz".split())
_INTEGERS = frozenset("steps chunks rows u_row dt_row z_row".split())
# Of the latter, those that are multiples of 16 in a model.
_ROWS = frozenset("u_row dt_row z_row".split())
# As in training; lengths and first states are for padded and continued rows.
_ABSENT = {"forward": ("state", "valid"), "backward": ("valid",)}


@dataclass
class SassBenchmark:
    """Count registers, memory and instructions of the scan's kernels."""

    targets: list[str] | None = None
    """Architectures; None is sm_80, sm_90, sm_100, sm_120 and gfx942."""


@dataclass
class Taken:
    """Costs of a kernel: resources of a GPU, instructions of a warp for a step of a state, seconds of the compiler."""

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: float
    shuffles: float
    seconds: float


def measure(name: str, target: str, dtype: str = "bf16", unroll: int = _UNROLL) -> Taken:
    """Compile a kernel, `forward` or `backward`, for a target; its instructions are NaN where they are not NVIDIA's."""
    # From the sources, and not what an earlier run has left.
    triton.knobs.compilation.always_compile = True
    begin = time.perf_counter()
    kernel = _compile(name, _TARGETS[target], dtype, unroll)
    seconds = time.perf_counter() - begin
    shared = kernel.metadata.shared
    if "cubin" not in kernel.asm:
        keys = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        registers, stack, spills = (int(re.findall(rf"\.{key}:\s*(\d+)", kernel.asm["amdgcn"])[0]) for key in keys)
        return Taken(registers, stack, spills, shared, float("nan"), float("nan"), seconds)
    usage, code = (_tool(kernel, *command) for command in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c")))
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    counts = _counts_of_loops(code, _STATES * (unroll if name == "forward" else triton_scan.CHUNK))
    total, shuffles = sum(counts.values()), counts.get("SHFL", 0.0)
    return Taken(numbers["REG"], numbers["STACK"], numbers["LOCAL"], shared, total, shuffles, seconds)


def _compile(name: str, target: GPUTarget, dtype: str, unroll: int) -> Any:
    """Compile a kernel as it is launched for a model: multiples of 16 are known to be such."""
    kernel = _KERNELS[name]
    constants: dict[str, Any] = dict.fromkeys(_ABSENT[name])
    constants |= {"WIDTH": _WIDTH, "U_STEP": _WIDTH, "DT_STEP": _WIDTH, "Z_STEP": 2 * _WIDTH, "STATES": _STATES}
    constants |= {"WIDE": tl.float32, "BLOCK": target.warp_size, "CHUNK": triton_scan.CHUNK}
    constants |= {"UNROLL": unroll} if name == "forward" else {}
    signature, hints = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        pointer = f"*{dtype}" if argument in _GIVEN else "*i64" if argument in ("pairs", "carry") else "*fp32"
        kind = "constexpr" if argument in constants else "i32" if argument in _INTEGERS else pointer
        signature[argument] = kind
        if kind.startswith("*") or argument in _ROWS:
            hints[(place,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, values, hints), target=target, options={"num_warps": 1})


def _tool(kernel: Any, name: str, flag: str) -> str:
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([_TOOLS / name, flag, file.name], capture_output=True, text=True, check=True).stdout


def _counts_of_loops(code: str, steps: int) -> dict[str, float]:
    """Return the instructions of the loops by kind, for a step of a state.

    A jump backward is a loop. The outermost one goes through `steps` of them; in the backward pass the one inside goes
    through the steps of one state, and runs for each.
    """
    labels: dict[str, int] = {}
    instructions: list[str] = []
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    kinds = [re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in instructions]
    for place, text in enumerate(instructions):
        jump = re.search(r"BRA.*?(\.L_x_\d+)", text)
        if jump and labels.get(jump[1], place + 1) < place - 100:
            loops.append((labels[jump[1]], place + 1))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    counts = Counter(kinds[first:last])
    for begin, end in loops:
        if (begin, end) != (first, last):
            # Once it is there already.
            counts += Counter({kind: (_STATES - 1) * count for kind, count in Counter(kinds[begin:end]).items()})
    return {kind: count / steps for kind, count in counts.items()}


def main(config: SassBenchmark) -> None:
    """Compile for each target, and print the rows."""
    rows = []
    for target in config.targets or list(_TARGETS):
        for name, dtype in product(_KERNELS, _DTYPES):
            taken, what = measure(name, target, dtype), f"{name}, {target}, {dtype}"
            rows += [
                Row(f"{what}: stack, spills and shared memory", taken.stack + taken.spills + taken.shared, "B", "<= 0"),
                Row(f"{what}: compiled in", taken.seconds, "s", "<= 12"),
            ]
            if target == "gfx942":
                rows.append(Row(f"{what}: registers", taken.registers, "", "<= 512"))
                continue
            most, instructions, shuffles = (96, 9.4, 0) if name == "forward" else (255, 28, 2)
            rows += [
                Row(f"{what}: registers", taken.registers, "", f"<= {most}"),
                Row(f"{what}: instructions a warp-step of a state", taken.instructions, "", f"<= {instructions}"),
                Row(f"{what}: shuffles among them", taken.shuffles, "", f"<= {shuffles}"),
            ]
    finish("sass: kernels of the selective scan, 5,120 channels, 16 states", rows)


if __name__ == "__main__":
    cli.run(main, SassBenchmark)
