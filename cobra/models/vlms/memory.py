"""How many branches fit into the memory that is free."""

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
# Of what is free so much is left to others.
_SPARE = 0.2


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be had on a device, what torch holds without using it included."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        # Unlike the free pages this counts what the system would give up: its cache of files.
        return 1024 * int(meminfo.read_text().partition("MemAvailable:")[2].split()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def state_bytes(config: MambaConfig) -> int:
    """Return the bytes of one row's state, whatever it has read."""
    return MambaState.zeros(config, 1, "meta").nbytes


def branches_at_once(config: MambaConfig, device: torch.device, held: int, wanted: int, memory: float | None) -> int:
    """Return how many branches can be written together; the others wait, which changes no answer.

    Args:
        config: Of the language model.
        device: Where the states are.
        held: States that are kept meanwhile: those that are branched and the best ones so far.
        wanted: Branches that there are to write.
        memory: GiB to use at most; None is four fifths of what is free.

    Raises:
        UserError: Not even one fits beside those that are kept.
    """
    state = state_bytes(config)
    # What is kept is copied when others join it.
    usable = int(free_memory(device) * (1 - _SPARE) if memory is None else memory * 2**30)
    branch = _STATES * state + _BYTES_PER_SCORE * config.padded_vocab_size
    fitting = (usable - 2 * held * state) // branch
    if fitting < 1:
        least = (2 * held * state + branch) / 2**30
        raise UserError(
            f"the search keeps {held:,} states of {state / 2**20:,.1f} MiB, and a branch takes {branch / 2**20:,.1f} "
            f"MiB while it is written, {least:,.2f} GiB at least; {usable / 2**30:,.2f} GiB of {device.type} memory "
            "may be used: ask fewer prompts at once, keep fewer branches (keep), or allow more (memory)"
        )
    return min(fitting, wanted)
