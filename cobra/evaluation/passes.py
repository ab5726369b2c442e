"""One model's passes over a few batches of images: images read once, prompts sorted by length, tokens written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cobra.evaluation.protocol import OWN_STAGES_END, SCRATCHPAD_TOKENS, Protocol, as_turn, second_prompt
from cobra.models.backbones.vision import PixelValues
from cobra.models.backbones.vision.transforms import map_pixels, stack_pixels
from cobra.models.mamba import MambaState
from cobra.models.vlms.generation import GenerationOptions
from cobra.util.errors import UserError

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM


@dataclass(frozen=True)
class Written:
    """What was written about one image."""

    prompt: str
    """The human turn that was answered."""
    raw: str
    analysis: str | None
    """What a scratchpad's first pass wrote."""
    tokens: int
    """Of both passes."""


class Passes:
    """A model answering by a protocol."""

    def __init__(self, vlm: "CobraVLM", protocol: Protocol, own_stages: bool) -> None:
        """Check that the final prompt fits.

        Args:
            vlm: In evaluation mode.
            protocol: What is asked.
            own_stages: Whether the model was fine-tuned to write stages by itself; see
                :mod:`cobra.evaluation.protocol`.

        Raises:
            UserError: The model would see the final prompt cut.
        """
        self._vlm = vlm
        self._protocol = protocol
        self._own_stages = own_stages
        if not self._fits(protocol.prompt):
            raise UserError(
                f"--prompt is too long: {vlm.model_id} cuts texts at {vlm.max_text_length:,} tokens; give a shorter one"
            )

    def read_images(self, pixels: Sequence[PixelValues]) -> list[MambaState]:
        """Return the states after images, in batches.

        Args:
            pixels: Of each image, as the model's transform gives them.
        """
        size, device = self._protocol.batch_size, self._vlm.device
        batches = [stack_pixels(list(pixels[start : start + size])) for start in range(0, len(pixels), size)]
        return [self._vlm.read_images(map_pixels(batch, lambda value: value.to(device))) for batch in batches]

    def answer(self, states: Sequence[MambaState], scratchpad: bool) -> Iterator[dict[int, Written]]:
        """Answer the final prompt about images.

        Args:
            states: From :meth:`read_images`; they stay as they are.
            scratchpad: Whether a first pass writes an analysis.

        Yields:
            After each batch what was written, by the image's place; batches are in the order of prompts' lengths.
        """
        rows = sum(state.batch_size for state in states)
        prompts, spent = [self._protocol.prompt] * rows, [0] * rows
        analyses: list[str | None] = [None] * rows
        if scratchpad:
            stop = OWN_STAGES_END if self._own_stages else ()
            options = GenerationOptions(max_new_tokens=SCRATCHPAD_TOKENS, stop_strings=stop)
            first = self._protocol.first_prompt(self._own_stages)
            for batch in self._generate(states, [first] * rows, options):
                for row, ids in batch.items():
                    analyses[row], spent[row] = self._text(ids), len(ids)
                    prompts[row] = self._second_prompt(self._text(ids))
        for batch in self._generate(states, prompts, GenerationOptions(max_new_tokens=self._protocol.max_new_tokens)):
            yield {
                row: Written(prompts[row], self._text(ids), analyses[row], spent[row] + len(ids))
                for row, ids in batch.items()
            }

    def _generate(
        self, states: Sequence[MambaState], prompts: Sequence[str], options: GenerationOptions
    ) -> Iterator[dict[int, list[int]]]:
        """Yield each batch's new ids by row: prompts of like length together, so that little padding is read."""
        size = self._protocol.batch_size
        ids = [self._vlm.tokenize(as_turn(self._vlm, prompt)) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            prefix = _select(states, [divmod(row, size) for row in rows])
            written = self._vlm.generate_batch_ids(None, [ids[row] for row in rows], options, prefix)
            yield dict(zip(rows, written, strict=True))

    def _text(self, ids: Sequence[int]) -> str:
        return self._vlm.decode(ids).strip()

    def _second_prompt(self, analysis: str) -> str:
        """Return the second human turn, with the end of the analysis cut off where the final prompt would be cut."""
        prompt = second_prompt(analysis, self._protocol.prompt)
        while not self._fits(prompt):
            analysis = analysis[: len(analysis) * 3 // 4]
            prompt = second_prompt(analysis, self._protocol.prompt)
        return prompt

    def _fits(self, prompt: str) -> bool:
        return len(self._vlm.tokenize(as_turn(self._vlm, prompt))) < self._vlm.max_text_length


def _select(states: Sequence[MambaState], rows: Sequence[tuple[int, int]]) -> MambaState:
    """Return the states of (batch, row) pairs, in order, as one batch."""
    return MambaState(
        torch.stack([states[batch].conv[:, row] for batch, row in rows], dim=1),
        torch.stack([states[batch].ssm[:, row] for batch, row in rows], dim=1),
    )
