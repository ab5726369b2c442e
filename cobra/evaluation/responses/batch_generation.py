"""Batched generation for a window of images: images are read once, prompts are sorted by length."""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch.utils.data import default_collate

from cobra.evaluation.data.captioned_image import CaptionedImage, count_images
from cobra.evaluation.responses.protocol import (
    ANALYSIS_PROMPT,
    OWN_STAGES_END,
    SCRATCHPAD_TOKENS,
    Protocol,
    second_prompt,
)
from cobra.models.backbones.vision import PixelValues
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.models.generation.options import SEARCH_SAMPLING, GenerationOptions, SearchOptions
from cobra.models.mamba import MambaState
from cobra.models.vlms import as_turn
from cobra.util.errors import UserError
from cobra.util.printable import printable

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM


@dataclass(frozen=True)
class Written:
    """Text written about one image."""

    prompt: str
    """The human turn that was answered."""
    raw: str
    analysis: str | None
    """Text of a scratchpad's first pass; None without one."""
    tokens: int
    """Tokens of both passes."""


class BatchGenerator:
    """A model answering by a protocol."""

    def __init__(self, vlm: "CobraVLM", protocol: Protocol, own_stages: bool) -> None:
        """Take a model in evaluation mode; `own_stages` is that of :func:`answer_variants`."""
        self._vlm, self._protocol, self._own_stages = vlm, protocol, own_stages

    def check(self, images: Iterable[CaptionedImage]) -> None:
        """Raise a UserError where a final prompt, that of all images or of one, is longer than the model reads."""
        for prompt, number in Counter(map(self._protocol.prompt_of, images)).items():
            if not self._fits(prompt):
                which = "--prompt" if prompt == self._protocol.prompt else f"the question {printable(prompt, 80)!r}"
                raise UserError(
                    f"{which}, asked about {count_images(number)}, is too long: {self._vlm.model_id} reads "
                    f"{self._vlm.max_text_length:,} tokens at most; give a shorter one"
                )

    def read_images(self, pixels: Sequence[PixelValues]) -> list[MambaState]:
        """Return the states after images, the model's transform of each being `pixels`, in batches."""
        size, device = self._protocol.batch_size, self._vlm.device
        batches = [default_collate(list(pixels[start : start + size])) for start in range(0, len(pixels), size)]
        return [self._vlm.read_images(map_pixels(batch, lambda value: value.to(device))) for batch in batches]

    def answer(
        self, states: Sequence[MambaState], images: Sequence[CaptionedImage], scratchpad: bool
    ) -> Iterator[dict[int, Written]]:
        """Answer the final prompt about images, with a scratchpad after a first pass that writes an analysis.

        Args:
            states: From :meth:`read_images`; they stay as they are.
            images: Images of the states.
            scratchpad: True for the two passes.

        Yields:
            After each batch what was written, by the image's place; batches are in the order of prompts' lengths.
        """
        finals = [self._protocol.prompt_of(image) for image in images]
        prompts, spent = list(finals), [0] * len(finals)
        analyses: list[str | None] = [None] * len(finals)
        if scratchpad:
            stop = OWN_STAGES_END if self._own_stages else ()
            options = GenerationOptions(max_new_tokens=SCRATCHPAD_TOKENS, stop_strings=stop)
            firsts = finals if self._own_stages else [ANALYSIS_PROMPT] * len(finals)
            for batch in self._generate(states, firsts, options):
                for row, ids in batch.items():
                    analyses[row], spent[row] = self._text(ids), len(ids)
                    prompts[row] = self._second_prompt(self._text(ids), finals[row])
        if self._protocol.search != "none":
            yield from self._search(states, images, prompts, analyses, spent)
            return
        for batch in self._generate(states, prompts, GenerationOptions(max_new_tokens=self._protocol.max_new_tokens)):
            yield {
                row: Written(prompts[row], self._text(ids), analyses[row], spent[row] + len(ids))
                for row, ids in batch.items()
            }

    def _search(
        self,
        states: Sequence[MambaState],
        images: Sequence[CaptionedImage],
        prompts: Sequence[str],
        analyses: Sequence[str | None],
        spent: Sequence[int],
    ) -> Iterator[dict[int, Written]]:
        """Yield each batch's answers by row, searched for; an image's own seed makes them free of the batch."""
        protocol = self._protocol
        # Only a model that has learned the stages is held to them.
        sampling = replace(SEARCH_SAMPLING, max_new_tokens=protocol.max_new_tokens)
        options = SearchOptions(protocol.search, protocol.beams, sampling, guard=self._own_stages)
        search = self._vlm.new_search(options)
        for rows, prefix, ids in self._batches(states, prompts):
            seeds = [str(zlib.crc32(str(images[row].image_id).encode())) for row in rows]
            questions = [images[row].question or "" for row in rows]
            answers = search.run(*self._vlm.prefill(None, ids, prefix), seeds, questions)
            yield {
                row: Written(prompts[row], answer.text.strip(), analyses[row], spent[row] + answer.tokens_spent)
                for row, answer in zip(rows, answers, strict=True)
            }

    def _generate(
        self, states: Sequence[MambaState], prompts: Sequence[str], options: GenerationOptions
    ) -> Iterator[dict[int, list[int]]]:
        """Yield each batch's new ids by row."""
        for rows, prefix, ids in self._batches(states, prompts):
            written = self._vlm.generate_batch_ids(None, ids, options, prefix)
            yield dict(zip(rows, written, strict=True))

    def _batches(
        self, states: Sequence[MambaState], prompts: Sequence[str]
    ) -> Iterator[tuple[list[int], MambaState, list[list[int]]]]:
        """Yield rows, their states and prompts' ids: prompts of like length together, to read little padding."""
        size = self._protocol.batch_size
        ids = [self._vlm.tokenize(as_turn(self._vlm, prompt)) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            places = (divmod(row, size) for row in rows)
            state = MambaState.join([states[batch].rows(slice(place, place + 1)) for batch, place in places])
            yield rows, state, [ids[row] for row in rows]

    def _text(self, ids: Sequence[int]) -> str:
        return self._vlm.decode(ids).strip()

    def _second_prompt(self, analysis: str, final: str) -> str:
        """Return the second human turn, with the end of the analysis cut off where it would be too long."""
        prompt = second_prompt(analysis, final)
        while not self._fits(prompt):
            analysis = analysis[: len(analysis) * 3 // 4]
            prompt = second_prompt(analysis, final)
        return prompt

    def _fits(self, prompt: str) -> bool:
        return len(self._vlm.encode(as_turn(self._vlm, prompt))) <= self._vlm.max_text_length
