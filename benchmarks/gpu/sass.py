"""Compile the kernels of the selective scan for GPUs that are not there, and count what they take.

Registers, stack, spills and shared memory are those that NVIDIA's tools in Triton's wheel tell; instructions are those
of the loops, for a warp and a step of a state, in the sizes of cobra+3b: 5,120 channels of bf16 or fp32, 16 states.
Kernels that split the states of a channel over warps have their own rows.
"""

import re
import resource
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

from cobra.models.mamba.ops import triton_scan, triton_scan_backward, triton_table
from cobra.util import cli

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TARGETS = {
    **{f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_WIDTH, _STATES, _UNROLL = 5120, 16, 8
_KERNELS = {"forward": triton_scan.scan_forward, "backward": triton_scan_backward.scan_backward}
_DTYPES = ("bf16", "fp32")
# Registers of a lane of an AMD GPU's SIMD, which its waves share in eights.
_AMD_REGISTERS = 512
# Most registers, instructions a warp-step of a state, shuffles among them, and bytes of shared memory, by kernel and
# parts. Parts exchange 1,024 tensors' numbers of a warp at once: all of 8 steps, or of 16.
_MOST = {
    ("forward", 1): (96, 9.4, 0, 0),
    ("forward", triton_table.PARTS): (80, 10.4, 0, 4096),
    ("backward", 1): (255, 28, 2, 0),
    ("backward", triton_table.PARTS): (255, 32.5, 2, 8192),
}
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
    """Costs of a kernel: resources of a GPU, instructions of a warp for a step of a state, the compiler's seconds."""

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: float
    shuffles: float
    seconds: float
    processor_seconds: float
    """Seconds of a core, which are those of the clock on a machine that does nothing else."""

    @property
    def waves(self) -> int:
        """Waves that a SIMD of an AMD GPU holds at once."""
        return _AMD_REGISTERS // (-(-self.registers // 8) * 8)


def measure(name: str, target: str, dtype: str = "bf16", unroll: int = _UNROLL, parts: int = 1) -> Taken:
    """Compile a kernel, `forward` or `backward`, for a target; its instructions are NaN where they are not NVIDIA's."""
    # From the sources, and not what an earlier run has left.
    triton.knobs.compilation.always_compile = True
    begin, used = time.perf_counter(), _processor_seconds()
    kernel = _compile(name, _TARGETS[target], dtype, unroll, parts)
    seconds, used = time.perf_counter() - begin, _processor_seconds() - used
    shared = kernel.metadata.shared
    if "cubin" not in kernel.asm:
        keys = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        registers, stack, spills = (int(re.findall(rf"\.{key}:\s*(\d+)", kernel.asm["amdgcn"])[0]) for key in keys)
        return Taken(registers, stack, spills, shared, float("nan"), float("nan"), seconds, used)
    usage, code = (_tool(kernel, *command) for command in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c")))
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    counts = _counts_of_loops(code, _STATES // parts, unroll if name == "forward" else triton_scan.CHUNK)
    total, shuffles = sum(counts.values()), counts.get("SHFL", 0.0)
    return Taken(numbers["REG"], numbers["STACK"], numbers["LOCAL"], shared, total, shuffles, seconds, used)


def _processor_seconds() -> float:
    """Return the seconds that this process and the assemblers that it has run took of processors."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _compile(name: str, target: GPUTarget, dtype: str, unroll: int, parts: int) -> Any:
    """Compile a kernel as it is launched for a model: multiples of 16 are known to be such."""
    kernel = _KERNELS[name]
    constants: dict[str, Any] = dict.fromkeys(_ABSENT[name])
    constants |= {"WIDTH": _WIDTH, "U_STEP": _WIDTH, "DT_STEP": _WIDTH, "Z_STEP": 2 * _WIDTH, "STATES": _STATES}
    constants |= {"WIDE": tl.float32, "BLOCK": target.warp_size, "CHUNK": triton_scan.CHUNK, "PARTS": parts}
    constants |= {"UNROLL": unroll} if name == "forward" else {}
    signature, hints = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        pointer = f"*{dtype}" if argument in _GIVEN else "*i64" if argument in ("pairs", "carry") else "*fp32"
        kind = "constexpr" if argument in constants else "i32" if argument in _INTEGERS else pointer
        signature[argument] = kind
        if kind.startswith("*") or argument in _ROWS:
            hints[(place,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, values, hints), target=target, options={"num_warps": parts})


def _tool(kernel: Any, name: str, flag: str) -> str:
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([_TOOLS / name, flag, file.name], capture_output=True, text=True, check=True).stdout


def _counts_of_loops(code: str, states: int, steps: int) -> dict[str, float]:
    """Return the instructions of the loops by kind, for a step of a state.

    A jump backward is a loop. The outermost one goes through `steps` of a warp's states; in the backward pass the one
    inside goes through the steps of one state, and runs for each.
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
            counts += Counter({kind: (states - 1) * count for kind, count in Counter(kinds[begin:end]).items()})
    return {kind: count / (states * steps) for kind, count in counts.items()}


def main(config: SassBenchmark) -> None:
    """Compile for each target, and print the rows."""
    rows = []
    for target in config.targets or list(_TARGETS):
        is_amd = _TARGETS[target].backend == "hip"
        for (name, parts), dtype in product(_MOST, _DTYPES):
            if is_amd and parts == 1:
                # Never chosen there: it leaves no registers for a second wave.
                continue
            taken = measure(name, target, dtype, parts=parts)
            what = f"{name}{f' in {parts} parts' if parts > 1 else ''}, {target}, {dtype}"
            most, instructions, shuffles, shared = _MOST[name, parts]
            rows += [
                Row(f"{what}: stack and spills", taken.stack + taken.spills, "B", "<= 0"),
                Row(f"{what}: shared memory", taken.shared, "B", f"<= {shared * (2 if is_amd else 1)}"),
                Row(f"{what}: compiled in", taken.seconds, "s", "<= 12"),
                Row(f"{what}: processor's time of that", taken.processor_seconds, "s", "<= 12"),
            ]
            if is_amd:
                rows.append(Row(f"{what}: registers", taken.registers, "", f"<= {_AMD_REGISTERS}"))
                rows.append(Row(f"{what}: waves of a SIMD", taken.waves, "", ">= 1"))
                continue
            rows += [
                Row(f"{what}: registers", taken.registers, "", f"<= {most}"),
                Row(f"{what}: instructions a warp-step of a state", taken.instructions, "", f"<= {instructions}"),
                Row(f"{what}: shuffles among them", taken.shuffles, "", f"<= {shuffles}"),
            ]
    finish("sass: kernels of the selective scan, 5,120 channels, 16 states", rows)


if __name__ == "__main__":
    cli.run(main, SassBenchmark)
