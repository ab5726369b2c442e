"""The number of CPU threads for answering: small models use one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cobra.models.mamba import MambaLM

# Numbers of in_proj below which a step of 32 answers takes less than a millisecond on one thread. Each of its
# operations waits for all its threads: where the cores are busy, every wait may take a time slice of some milliseconds,
# and 350 answers of the demo's model took 8 times as long on two threads as on one.
_SMALL = 2**17


@contextmanager
def threads_for(llm: MambaLM) -> Iterator[None]:
    """Let PyTorch work on one thread for a small model, and on those that it has for any other."""
    before = torch.get_num_threads()
    if before == 1 or 4 * llm.config.d_model**2 >= _SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
