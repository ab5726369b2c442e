"""The decode loop: chooses a token for every row, reads it, and leaves out rows that are done."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.generation.options import GenerationOptions
from cobra.models.generation.sampling import (
    best_tokens,
    draw,
    keep_likely,
    next_numbers,
    penalise_repetition,
    row_seeds,
)
from cobra.models.mamba import MambaLM, MambaState


def choose(scores: Tensor, options: GenerationOptions, seen: Tensor | None, numbers: Tensor | None = None) -> Tensor:
    """Return the next token of every row.

    Args:
        scores: (batch, vocabulary), fp32.
        options: How to choose. Filters come after the temperature, in the order top-k, top-p, min-p.
        seen: Tokens of prompt and answer (batch, vocabulary), bool; None where repetition is free.
        numbers: The rows' random numbers (batch,), see :func:`draw`; None takes them from the options' generator.

    Returns:
        (batch,) int64.
    """
    if seen is not None:
        scores = penalise_repetition(scores, seen, options.repetition_penalty)
    if not options.do_sample:
        return best_tokens(scores)
    if numbers is None:
        device = scores.device if options.generator is None else options.generator.device
        numbers = torch.rand(len(scores), generator=options.generator, device=device).to(scores.device)
    scores = scores / options.temperature
    if not options.top_k and options.top_p == 1.0 and not options.min_p:
        return draw(scores, numbers)
    kept, tokens = keep_likely(scores, options.top_k, options.top_p, options.min_p)
    return tokens.gather(-1, draw(kept, numbers).unsqueeze(-1)).squeeze(-1)


def stops_after(
    texts: Sequence[str], decode: Callable[[Sequence[int]], str], rows: int
) -> Callable[[int, int], bool] | None:
    """Return a function that takes the (row, token) of every new token and returns True if it completes a text.

    Args:
        texts: Texts that end an answer; None is returned where there are none.
        decode: From ids to text.
        rows: Number of answers written together.
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


def text_pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Decode tokens as they come; a character of several tokens is held back until it is whole."""
    held: list[int] = []
    for token in tokens:
        held.append(token)
        text = decode(held)
        # A part of a character shows as U+FFFD.
        if not text.endswith("\ufffd"):
            yield text
            held = []
    yield decode(held)


def token_mask(prompts: Sequence[Sequence[int]], scores: Tensor) -> Tensor:
    """Return a mask of the tokens in each prompt: bool (batch, vocabulary), of the shape and device of scores."""
    seen = torch.zeros_like(scores, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    return seen


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
    """Write answers token by token after the prompts have been read.

    Finished rows leave the batch, so the rest goes on faster.

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
    seen = None if options.repetition_penalty == 1.0 else token_mask(prompts, scores)
    decoder = open_decoder(llm, state)
    try:
        while True:
            numbers = next_numbers([streams[row] for row in rows], scores.device) if streams else None
            tokens = choose(scores, options, seen, numbers)
            values = tokens.tolist()
            step = [(row, value) for row, value in zip(rows, values, strict=True) if left[row] > 0]
            if step:
                yield step
            for row, _ in step:
                left[row] -= 1
            going = [
                index
                for index, (row, value) in enumerate(zip(rows, values, strict=True))
                if left[row] > 0 and value != end_token_id and not (stop is not None and stop(row, value))
            ]
            if not going:
                return
            if len(going) < len(rows):
                kept = torch.tensor(going, device=tokens.device)
                decoder.keep(kept)
                tokens, rows = tokens[kept], [rows[index] for index in going]
                seen = None if seen is None else seen[kept]
            if seen is not None:
                seen.scatter_(1, tokens.unsqueeze(1), True)
            scores = decoder.read(tokens)
    finally:
        decoder.close()
