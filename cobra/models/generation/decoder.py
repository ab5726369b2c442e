"""Readers of tokens on the constant-size state: whole prompts, and one token of every row at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cobra.models.mamba import MambaLM, MambaState
from cobra.util.torch_utils import send

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


def read_tokens(llm: MambaLM, tokens: Tensor, state: MambaState) -> Tensor:
    """Read a token of every row, (batch,) int64, into `state`; return the next scores (batch, vocabulary), fp32."""
    return llm.logits(llm(llm.embed(tokens.unsqueeze(1)), state)[:, -1])


@torch.no_grad()
def read_rows(llm: MambaLM, rows: Sequence[Sequence[int]], state: MambaState, before: Tensor | None = None) -> Tensor:
    """Read several tokens of every row.

    Args:
        llm: The language model.
        rows: Ids of each row, of any lengths; none may be empty without `before`.
        state: The rows' past; updated in place.
        before: Embeddings (rows, positions, d_model) that precede the tokens of each row, as of an image.

    Returns:
        Scores of the next token (rows, vocabulary), fp32.
    """
    # On the CPU, where nothing is waited for to look at them.
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    embeds = llm.embed(send(ids, state.device))
    if before is not None:
        embeds = torch.cat([before.to(embeds.dtype), embeds], dim=1)
        lengths = lengths + before.shape[1]
    ragged = bool((lengths != embeds.shape[1]).any())
    hidden = llm(embeds, state, lengths if ragged else None)
    last = send(lengths - 1, state.device)
    return llm.logits(hidden[torch.arange(len(rows), device=last.device), last])


# Bytes of a head that is transposed for decoding: smaller ones stay in the cache and gain nothing, larger ones would
# take much memory and belong to models whose blocks take nearly all of the time.
_HEAD_BYTES = range(4 * 2**20, 256 * 2**20)

_heads: WeakKeyDictionary[MambaLM, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


def transposed_head(llm: MambaLM) -> Tensor | None:
    """Return a copy of the head as (d_model, vocabulary), kept with its model, or None where it is of no use.

    A CPU's matrix product of few rows by 50,280 columns goes through the head in the order in which it lies there: as
    the embedding it takes 2.3 times as long for one row and 1.5 times for sixteen. Weights that may still be trained
    are not copied.
    """
    weight = llm.lm_head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.nbytes not in _HEAD_BYTES:
        return None
    if weight.requires_grad or weight.is_inference():
        return None
    version = (weight.data_ptr(), weight._version)
    known = _heads.get(llm)
    if known is None or known[0] != version:
        known = _heads[llm] = (version, weight.t().contiguous())
    return known[1]


class Decoder:
    """The rows that are being written, and their states; :class:`GraphDecoder` does the same on CUDA.

    Attributes:
        reads_ahead: True where tokens are best read before they are looked at, by :meth:`read` and then :meth:`settle`:
            a GPU then works on the next step meanwhile. Elsewhere that would only read for rows that have ended.
    """

    def __init__(self, llm: MambaLM, state: MambaState) -> None:
        self.reads_ahead = state.device.type == "cuda"
        self._llm = llm
        self._state = state
        self._head = transposed_head(llm)

    @property
    def state(self) -> MambaState:
        """State of the rows; valid until the next call of a method, so copy what is to last."""
        return self._state

    def read(self, tokens: Tensor) -> Tensor:
        """Read a token of every row, (batch,) int64; return the next scores, valid until the next call of a method."""
        with threads_for(self._llm):
            if self._head is None:
                return read_tokens(self._llm, tokens, self._state)
            return torch.mm(self._llm(self._llm.embed(tokens.unsqueeze(1)), self._state)[:, -1], self._head)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only, by their indices (n,) int64 among the current ones."""
        self._state = self._state.select(rows)

    def join(self, state: MambaState) -> None:
        """Go on with the rows of another state too, after the current ones; after an error with the current ones."""
        self._state = MambaState.join([self._state, state])

    def advance(self, tokens: Tensor, places: list[int]) -> Tensor:
        """Go on with the rows at some places, reading theirs of all rows' tokens (batch,); return their next scores."""
        if len(places) < len(tokens):
            kept = send(places, tokens.device)
            self.keep(kept)
            tokens = tokens[kept]
        return self.read(tokens)

    def settle(self, scores: Tensor, places: list[int]) -> Tensor:
        """Go on with the rows at some places after all were read; return theirs of the scores of :meth:`read`."""
        if len(places) < len(scores):
            kept = send(places, scores.device)
            scores = scores[kept]
            self.keep(kept)
        return scores

    def close(self) -> None:
        """Release what the decoder holds; it cannot be used afterwards."""
