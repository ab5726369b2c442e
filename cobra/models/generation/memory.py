"""Free memory, and the number of branches that fit into it."""

import os
from pathlib import Path

import torch

from cobra.models.mamba import MambaConfig, MambaState
from cobra.util.errors import UserError

# States of a branch that exist at once: the parent's copy, the one that is written, and the one that is handed on.
_STATES = 3
# Bytes for each entry of the vocabulary while a token is drawn: scores and their filtered copies in fp32, their
# probabilities and the sums of these in fp64.
_BYTES_PER_SCORE = 40
_MEMINFO, _CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")
# Folder of control groups by their controllers in that file, and the names of their limit, their use, and the part of
# it that is a cache of files.
_GROUP_FILES = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# Share of the free memory that is left to others.
_SPARE = 0.2


def free_memory(device: torch.device) -> int:
    """Return the free bytes on a device, including torch's unused cache."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if _MEMINFO.is_file():
        # Unlike the free pages this includes what the system would give up: its cache of files.
        available = 1024 * int(_MEMINFO.read_text().partition("MemAvailable:")[2].split()[0])
        return min([available, *_left_to_groups()])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_to_groups() -> list[int]:
    """Return what each control group (version 2 or 1) still leaves this process: limit less use, files cached aside."""
    left = []
    for line in _CGROUPS.read_text().splitlines() if _CGROUPS.is_file() else []:
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in _GROUP_FILES:
            continue
        root, limit, used, cached = _GROUP_FILES[kind]
        # Within a container the path may be one of outside: its own group is then the root.
        inner = root / path.lstrip("/")
        for folder in {root, inner, *(parent for parent in inner.parents if root in parent.parents)}:
            try:
                most = (folder / limit).read_text().strip()
                if most != "max":
                    files = (folder / "memory.stat").read_text().partition(f"{cached} ")[2].split()
                    left.append(int(most) - int((folder / used).read_text()) + int(files[0]))
            except (OSError, ValueError, IndexError):
                continue  # No such group, or none with a limit.
    return left


def state_bytes(config: MambaConfig) -> int:
    """Return the bytes of one row's state; they do not grow with the text."""
    return MambaState.zeros(config, 1, "meta").nbytes


def _row_bytes(config: MambaConfig) -> int:
    """Return the bytes that a row takes while it is written."""
    return _STATES * state_bytes(config) + _BYTES_PER_SCORE * config.padded_vocab_size


def _usable_memory(device: torch.device) -> int:
    return int(free_memory(device) * (1 - _SPARE))


def rows_that_fit(config: MambaConfig, device: torch.device, wanted: int) -> int:
    """Return how many of the rows that are wanted can be written together in the memory that is free; one at least."""
    return max(1, min(wanted, _usable_memory(device) // _row_bytes(config)))


def branches_at_once(config: MambaConfig, device: torch.device, kept: int, wanted: int, memory: float | None) -> int:
    """Return how many branches can be written together; the others wait, which changes no answer.

    Args:
        config: Sizes of the language model.
        device: Device of the states.
        kept: States that are kept meanwhile: those that are branched and the best ones so far.
        wanted: Branches to write.
        memory: GiB to use at most; None is four fifths of what is free.

    Raises:
        UserError: Not even one fits beside those that are kept.
    """
    state, branch = state_bytes(config), _row_bytes(config)
    # What is kept is copied when others join it.
    usable = _usable_memory(device) if memory is None else int(memory * 2**30)
    fitting = (usable - 2 * kept * state) // branch
    if fitting < 1:
        least = (2 * kept * state + branch) / 2**30
        raise UserError(
            f"the search keeps {kept:,} states of {state / 2**20:,.1f} MiB, and a branch takes {branch / 2**20:,.1f} "
            f"MiB while it is written, {least:,.2f} GiB at least; {usable / 2**30:,.2f} GiB of {device.type} memory "
            "may be used: ask fewer prompts at once, keep fewer branches (keep), or allow more (memory)"
        )
    return min(fitting, wanted)
