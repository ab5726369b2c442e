"""Reading one token of every row at a time, on the constant-size state; rows that are done leave."""

from torch import Tensor

from cobra.models.mamba import MambaLM, MambaState


def read_tokens(llm: MambaLM, tokens: Tensor, state: MambaState) -> Tensor:
    """Read a token of every row.

    Args:
        llm: The language model.
        tokens: (batch,) int64.
        state: What was read before, a row for each token; updated in place.

    Returns:
        Scores of the next token (batch, vocabulary), fp32.
    """
    return llm.logits(llm(llm.embed(tokens.unsqueeze(1)), state)[:, -1])


class Decoder:
    """The rows that are being written, and what they have read; :class:`GraphDecoder` does the same on CUDA."""

    def __init__(self, llm: MambaLM, state: MambaState) -> None:
        self._llm = llm
        self._state = state

    @property
    def state(self) -> MambaState:
        """What the rows have read; good until the next call of a method, so copy what is to last."""
        return self._state

    def read(self, tokens: Tensor) -> Tensor:
        """Read a token of every row, (batch,) int64; return the next scores, good until the next call of a method."""
        return read_tokens(self._llm, tokens, self._state)

    def keep(self, places: Tensor) -> None:
        """Go on with some rows only, by their places (n,) int64 among those that are there."""
        self._state = self._state.select(places)

    def close(self) -> None:
        """Give back what was lent; the decoder is of no use afterwards."""


def open_decoder(llm: MambaLM, state: MambaState) -> Decoder:
    """Return the decoder that is the fastest for a model: with captured graphs on CUDA, else a plain one.

    Args:
        llm: In evaluation mode.
        state: What the rows have read; the decoder's from now on, and changed in place.
    """
    if state.ssm.device.type == "cuda":
        from cobra.models.vlms.graph import GraphDecoder, can_capture

        if can_capture(llm):
            return GraphDecoder(llm, state)
    return Decoder(llm, state)
