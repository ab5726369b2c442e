"""Branches of answers: written together, from copies of constant-size states."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.generation.generate import choose
from cobra.models.generation.options import GenerationOptions
from cobra.models.generation.sampling import next_numbers
from cobra.models.generation.stage_guard import StageGuard, TokenTexts
from cobra.models.mamba import MambaLM, MambaState
from cobra.reasoning.trace import MAX_TAG_LENGTH, STAGE_TAGS, last_closed_stage


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
        guard = None if self.guard is None else self.guard.copy()
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
    """Write every branch to the end of its stage, or of its answer.

    Args:
        llm: The language model.
        branches: Changed in place; the last token of each is left unread.
        state: A row for each; used up.
        scores: Scores of the next token (branches, vocabulary), fp32.
        limits: Where to stop.
        texts: The tokens' texts.
        final: A row for each branch, overwritten with its last state; None where the states are not needed.
        between_steps: Called before every token.
    """
    decoder = open_decoder(llm, state)
    going = list(range(len(branches)))
    try:
        while True:
            between_steps()
            values, gains = _choose_tokens([branches[index] for index in going], scores, limits.sampling)
            stops = [
                _add_token(branches[index], value, gain, limits, texts)
                for index, value, gain in zip(going, values, gains, strict=True)
            ]
            staying = [index for index, stop in enumerate(stops) if not stop]
            if final is not None and len(staying) < len(going):
                _keep_states(decoder.state, [index for index, stop in enumerate(stops) if stop], going, final)
            if not staying:
                return
            if len(staying) < len(going):
                decoder.keep(torch.tensor(staying, device=scores.device))
                going = [going[index] for index in staying]
            scores = decoder.read(torch.tensor([values[index] for index in staying], device=scores.device))
    finally:
        decoder.close()


def _keep_states(state: MambaState, positions: list[int], going: list[int], final: MambaState) -> None:
    """Copy the rows of a state at some positions into the rows of `final` that belong to their branches."""
    left = state.select(torch.tensor(positions, device=state.device))
    rows = torch.tensor([going[index] for index in positions], device=state.device)
    final.write(rows, left)


def _choose_tokens(
    branches: Sequence[Branch], scores: Tensor, sampling: GenerationOptions
) -> tuple[list[int], list[float | None]]:
    """Return a token for every branch, and its log-probability; None where it was forced."""
    total = scores.logsumexp(-1)
    tokens = _draw_tokens(branches, scores, sampling)
    values = tokens.tolist()
    allowed = scores
    while refused := [
        index
        for index, (branch, value) in enumerate(zip(branches, values, strict=True))
        if branch.guard is not None and not branch.guard.forced and not branch.guard.admits(value)
    ]:
        # Drawing again without what was refused is drawing from what the guard admits.
        allowed = scores.clone() if allowed is scores else allowed
        rows = torch.tensor(refused, device=scores.device)
        allowed[rows, tokens[rows]] = -torch.inf
        tokens[rows] = _draw_tokens([branches[index] for index in refused], allowed[rows], sampling)
        values = tokens.tolist()
    gains: list[float | None] = (scores.gather(1, tokens.unsqueeze(1)).squeeze(1) - total).tolist()
    for index, branch in enumerate(branches):
        if branch.guard is not None and branch.guard.forced:
            values[index], gains[index] = branch.guard.forced[0], None
    return values, gains


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
