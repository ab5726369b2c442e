"""The decode loop, of answers and of branches: a token for every row is chosen and read, and finished rows leave."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.generation.options import GenerationOptions
from cobra.models.generation.sampling import choose, next_numbers, row_seeds
from cobra.models.generation.stage_guard import StageGuard, TokenTexts
from cobra.models.mamba import MambaLM, MambaState
from cobra.reasoning.trace import MAX_TAG_LENGTH, STAGE_TAGS, last_closed_stage
from cobra.util.torch_utils import Receipt, send


def stops_after(
    texts: Sequence[str], decode: Callable[[Sequence[int]], str], rows: int
) -> Callable[[int, int], bool] | None:
    """Return a function of the (row, token) of every new token of some rows: True if it completes one of the texts.

    None where there are no texts.
    """
    if not texts:
        return None
    # Every token of a text holds a character of it at least, or a byte of one.
    window = max(len(text.encode()) for text in texts)
    last: list[list[int]] = [[] for _ in range(rows)]

    def stop(row: int, token: int) -> bool:
        last[row] = [*last[row], token][-window:]
        written = decode(last[row])
        return any(text in written for text in texts)

    return stop


class TextPieces:
    """Text of tokens as they come; a character of several tokens is held back until it is whole."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that is whole with one more token."""
        self._held.append(token)
        text = self._decode(self._held)
        # A part of a character shows as U+FFFD.
        if text.endswith("\ufffd"):
            return ""
        self._held = []
        return text

    def finish(self) -> str:
        """Return the text of what is held back."""
        return self._decode(self._held)


def text_pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Decode tokens as they come, with :class:`TextPieces`."""
    pieces = TextPieces(decode)
    for token in tokens:
        yield pieces.push(token)
    yield pieces.finish()


@torch.no_grad()
def generate_ids(
    llm: MambaLM,
    state: MambaState,
    scores: Tensor,
    prompts: Sequence[Sequence[int]],
    options: GenerationOptions,
    end_token_id: int,
    stop: Callable[[int, int], bool] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Write answers token by token after the prompts; finished rows leave the batch, so the rest goes on faster.

    Args:
        llm: The language model.
        state: After the prompts, a row for each; used up.
        scores: Scores of the first new token (batch, vocabulary).
        prompts: Text ids of each prompt, for the limits and the repetition penalty.
        options: How tokens are chosen.
        end_token_id: Token after which a row is done; it is yielded too.
        stop: Called with the (row, token) of every token that may be followed; True where the row is done with it.

    Yields:
        After every step the (row, token) pairs of the rows that were still going.
    """
    streams = []
    if options.do_sample:
        streams = [random.Random(seed) for seed in row_seeds(options.seeds, len(prompts), options.generator)]
    rows = list(range(len(prompts)))
    left = [options.budget(len(prompt)) for prompt in prompts]
    seen = None
    if options.repetition_penalty != 1.0:
        seen = torch.zeros_like(scores, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            seen[row, list(prompt)] = True
    with closing(open_decoder(llm, state)) as decoder:
        while rows:
            numbers = next_numbers([streams[row] for row in rows], scores.device) if streams else None
            tokens = choose(scores, options, seen, numbers)
            receipt = Receipt(tokens)
            ahead = decoder.read(tokens) if decoder.reads_ahead and any(left[row] > 1 for row in rows) else None
            values = receipt.read()
            step = [(row, value) for row, value in zip(rows, values, strict=True) if left[row] > 0]
            if step:
                yield step
            for row, _ in step:
                left[row] -= 1
            places = [
                place
                for place, (row, value) in enumerate(zip(rows, values, strict=True))
                if left[row] > 0 and value != end_token_id and not (stop is not None and stop(row, value))
            ]
            if seen is not None:
                seen.scatter_(1, tokens.unsqueeze(1), True)
                seen = seen[send(places, seen.device)] if 0 < len(places) < len(rows) else seen
            rows = [rows[place] for place in places]
            if rows:
                scores = decoder.advance(tokens, places) if ahead is None else decoder.settle(ahead, places)


@dataclass
class Branch:
    """One possible continuation of an answer.

    prompt: Index of the answered prompt.
    ids: All tokens of the answer.
    unread: The last of them, which the branch's state has not read yet.
    log_likelihood: Sum of the log-probabilities, by the model itself (temperature 1, nothing filtered), of the tokens
        that were chosen; tokens that the guard forced are left out.
    chosen: Number of those tokens.
    guard: Constraint to the four stages; None for free text.
    stream: Source of the random numbers that draw tokens; None takes the best token.
    tail: The last characters written since it branched, where there is no guard.
    ended: True where the answer is whole or has used up its tokens.
    score: Value by the search's scorer; higher is better.
    row: Row of the branch's state, among those at hand.
    """

    prompt: int
    ids: list[int]
    unread: list[int]
    log_likelihood: float = 0.0
    chosen: int = 0
    guard: StageGuard | None = None
    stream: random.Random | None = None
    tail: str = ""
    ended: bool = False
    score: float = 0.0
    row: int = 0

    def branch(self, stream: random.Random | None) -> "Branch":
        """Return a copy that goes on by itself, once everything has been read."""
        guard = self.guard and self.guard.copy()
        return Branch(self.prompt, list(self.ids), [], self.log_likelihood, self.chosen, guard, stream)

    @property
    def mean_log_likelihood(self) -> float:
        """Log-likelihood of a chosen token on average: long answers lose nothing by their length."""
        return self.log_likelihood / max(self.chosen, 1)


@dataclass(frozen=True)
class Limits:
    """Where a branch ends, and how its tokens are chosen.

    sampling: Options of the choice.
    max_new_tokens: Tokens of an answer at most.
    end_token_id: Token that ends an answer without a guard.
    by_stage: True to pause after every closing tag.
    """

    sampling: GenerationOptions
    max_new_tokens: int
    end_token_id: int
    by_stage: bool


@torch.no_grad()
def write_branches(
    llm: MambaLM,
    branches: Sequence[Branch],
    state: MambaState,
    scores: Tensor,
    limits: Limits,
    texts: TokenTexts,
    final: MambaState | None,
    between_steps: Callable[[], None],
) -> None:
    """Write every branch, in place, to the end of its stage, or of its answer; its last token is left unread.

    Scores of the next token (branches, vocabulary), fp32, and state have a row for each branch; the state is used up.
    `final` is overwritten with the last states, if given; `between_steps` is called before every token.
    """
    going = list(range(len(branches)))
    with closing(open_decoder(llm, state)) as decoder:
        while going:
            between_steps()
            values, gains = _choose_tokens([branches[index] for index in going], scores, limits.sampling)
            stops = [
                _add_token(branches[index], value, gain, limits, texts)
                for index, value, gain in zip(going, values, gains, strict=True)
            ]
            if final is not None and any(stops):
                ended = [place for place, stop in enumerate(stops) if stop]
                rows = send([going[place] for place in ended], scores.device)
                final.write(rows, decoder.state.select(send(ended, scores.device)))
            places = [place for place, stop in enumerate(stops) if not stop]
            going = [going[place] for place in places]
            if going:
                scores = decoder.advance(send(values, scores.device), places)


def _choose_tokens(
    branches: Sequence[Branch], scores: Tensor, sampling: GenerationOptions
) -> tuple[list[int], list[float | None]]:
    """Return a token for every branch, and its log-probability; None where it was forced."""
    total = scores.logsumexp(-1)
    tokens = _draw_tokens(branches, scores, sampling)
    values, gains = _values(tokens, scores, total)
    allowed = scores
    while refused := [
        index
        for index, (branch, value) in enumerate(zip(branches, values, strict=True))
        if branch.guard is not None and not branch.guard.forced and not branch.guard.admits(value)
    ]:
        # Drawing again without what was refused is drawing from what the guard admits.
        allowed = scores.clone() if allowed is scores else allowed
        rows = send(refused, scores.device)
        allowed[rows, tokens[rows]] = -torch.inf
        tokens[rows] = _draw_tokens([branches[index] for index in refused], allowed[rows], sampling)
        values, gains = _values(tokens, scores, total)
    for index, branch in enumerate(branches):
        if branch.guard is not None and branch.guard.forced:
            values[index], gains[index] = branch.guard.forced[0], None
    return values, gains


def _values(tokens: Tensor, scores: Tensor, total: Tensor) -> tuple[list[int], list[float | None]]:
    """Return tokens (batch,) and their log-probabilities, read at once; `total` is the scores' logsumexp."""
    gains = scores.gather(1, tokens.unsqueeze(1)).squeeze(1) - total
    # Numbers of tokens are exact in fp32, up to 16 million.
    values, found = torch.stack([tokens.to(gains.dtype), gains]).tolist()
    return [int(value) for value in values], found


def _draw_tokens(branches: Sequence[Branch], scores: Tensor, sampling: GenerationOptions) -> Tensor:
    streams = [branch.stream for branch in branches if branch.stream is not None]
    return choose(scores, sampling, None, next_numbers(streams, scores.device) if sampling.do_sample else None)


def _add_token(branch: Branch, token: int, gain: float | None, limits: Limits, texts: TokenTexts) -> bool:
    """Add a token to a branch; return True if the branch stops after it."""
    branch.ids.append(token)
    branch.unread = [token]
    if gain is not None:
        branch.log_likelihood += gain
        branch.chosen += 1
    if branch.guard is not None:
        stage = branch.guard.stage
        branch.guard.advance(token)
        branch.ended = branch.guard.ended
        return branch.ended or (limits.by_stage and branch.guard.stage > stage)
    branch.tail = (branch.tail + texts[token])[-MAX_TAG_LENGTH:]
    closed = last_closed_stage(branch.tail) if limits.by_stage else None
    branch.ended = token == limits.end_token_id or len(branch.ids) >= limits.max_new_tokens or closed == STAGE_TAGS[-1]
    return branch.ended or closed is not None
