"""Reads prompts before they are answered: several together, and long ones part by part."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cobra.models.mamba import MambaState
from cobra.models.vlms import CobraVLM
from cobra.serving.jobs import Job, Prompt
from cobra.util.torch_utils import send

# Positions, padding included, that are read between two steps of the running batch: it waits for them, at most as long
# as for some ten tokens, and more of them at a time are read hardly faster.
POSITIONS = 512
# Patches of images that the towers encode between two steps; one image at least.
_PATCHES = 2048


class Reader:
    """A prompt that is being read."""

    def __init__(self, job: Job, prompt: Prompt, vlm: CobraVLM) -> None:
        self.job, self.prompt = job, prompt
        self._vlm = vlm
        self._patches = 0 if prompt.pixels is None else vlm.vision_backbone.num_patches
        # Positions in all, read, and up to where the state is to be kept.
        self._end = self._patches + len(prompt.ids) - prompt.read_ids
        self._at = 0
        self._mark = None if prompt.keep_at is None else self._patches + prompt.keep_at - prompt.read_ids
        self._embeds: Tensor | None = None
        # A prefix is copied when rows are joined to be read together.
        self.state = prompt.prefix or MambaState.zeros(vlm.llm_backbone.llm.config, 1, vlm.device)
        self._keep()

    @property
    def due(self) -> int:
        """Number of positions to be read next."""
        stop = self._end if self._mark is None else self._mark
        return min(stop - self._at, POSITIONS)

    @property
    def needs_towers(self) -> bool:
        """True where the image has not been encoded."""
        return self._embeds is None and self._patches > 0

    @property
    def done(self) -> bool:
        """True once all has been read."""
        return self._at == self._end

    def start(self, patches: Tensor | None) -> None:
        """Take the image's embeddings (patches, d_model), or None without one; once."""
        llm = self._vlm.llm_backbone.llm
        ids = send(list(self.prompt.ids[self.prompt.read_ids :]), self._vlm.device, torch.long)
        text = llm.embed(ids)
        self._embeds = text if patches is None else torch.cat([patches.to(text.dtype), text])

    def part(self) -> Tensor:
        """Return the embeddings (positions, d_model) that are due."""
        if self._embeds is None:
            self.start(None)
        assert self._embeds is not None
        return self._embeds[self._at : self._at + self.due]

    def advance(self, state: MambaState) -> None:
        """Go on after the part that was due, with the state of one row after it."""
        self.state, self._at = state, self._at + self.due
        self._keep()

    def _keep(self) -> None:
        if self._at == self._mark:
            self._mark, self.job.kept = None, self.state.clone()


class ReadingRoom:
    """Prompts in the order in which they have come; they are read in turns of bounded length.

    Attributes:
        waiting: Jobs whose prompts have not been begun.
    """

    def __init__(self, vlm: CobraVLM) -> None:
        self._vlm = vlm
        self.waiting: deque[Job] = deque()
        self._readers: list[Reader] = []

    def __bool__(self) -> bool:
        return bool(self.waiting or self._readers)

    @property
    def jobs(self) -> list[Job]:
        """All of them, those that are being read first."""
        return [*(reader.job for reader in self._readers), *self.waiting]

    @property
    def rows(self) -> int:
        """Rows that the prompts which are being read will need."""
        return sum(reader.job.count for reader in self._readers)

    def drop(self, job: Job) -> None:
        """Forget a job."""
        if job in self.waiting:
            self.waiting.remove(job)
        self._readers = [reader for reader in self._readers if reader.job is not job]

    def read(self, free_rows: int) -> list[tuple[Reader, Tensor]]:
        """Read what a turn allows; begin prompts only while there are free rows for their answers.

        Returns:
            Those that are done, with the scores (1, vocabulary) of their first new token. Jobs that fail are ended.
        """
        chosen = self._choose(free_rows)
        if not chosen:
            return []
        try:
            return self._read(chosen)
        except Exception as error:  # noqa: BLE001 - whatever it is, memory first of all, it is theirs
            for reader in chosen:
                self.drop(reader.job)
                reader.job.end(error)
            return []

    def _choose(self, free_rows: int) -> list[Reader]:
        """Return the prompts that are read now: the first, and those after it that fit beside it."""
        chosen: list[Reader] = []
        longest, images = 0, 0
        for reader in self._arriving(free_rows):
            longest, images = max(longest, reader.due), images + reader.needs_towers
            too_many = images > max(1, _PATCHES // max(self._vlm.vision_backbone.num_patches, 1))
            if chosen and (longest * (len(chosen) + 1) > POSITIONS or too_many):
                break
            chosen.append(reader)
        return chosen

    def _arriving(self, free_rows: int) -> Iterator[Reader]:
        yield from list(self._readers)
        while self.waiting and self.rows + self.waiting[0].count <= free_rows:
            job = self.waiting.popleft()
            try:
                reader = Reader(job, job.make_prompt(), self._vlm)
            except Exception as error:  # noqa: BLE001 - as above
                job.end(error)
                continue
            self._readers.append(reader)
            yield reader

    def _read(self, chosen: Sequence[Reader]) -> list[tuple[Reader, Tensor]]:
        self._encode([reader for reader in chosen if reader.needs_towers])
        parts = [reader.part() for reader in chosen]
        llm, lengths = self._vlm.llm_backbone.llm, torch.tensor([len(part) for part in parts])
        state = MambaState.join([reader.state for reader in chosen])
        ragged = bool((lengths != lengths[0]).any())
        hidden = llm(nn.utils.rnn.pad_sequence(parts, batch_first=True), state, lengths if ragged else None)
        done = []
        for row, reader in enumerate(chosen):
            reader.advance(state.rows(slice(row, row + 1)).clone())
            if reader.done:
                done.append((reader, row))
        self._readers = [reader for reader in self._readers if not reader.done]
        if not done:
            return []
        rows = send([row for _, row in done], hidden.device)
        scores = llm.logits(hidden[rows, send(lengths, hidden.device)[rows] - 1])
        return [(reader, scores[place : place + 1]) for place, (reader, _) in enumerate(done)]

    def _encode(self, readers: Sequence[Reader]) -> None:
        """Let the towers see the images of some prompts, all at once."""
        if not readers:
            return
        several = [reader.prompt.pixels for reader in readers if reader.prompt.pixels is not None]
        by_tower = [pixels if isinstance(pixels, dict) else {"": pixels} for pixels in several]
        joined = {name: torch.cat([each[name] for each in by_tower]) for name in by_tower[0]}
        pixels = joined if isinstance(several[0], dict) else joined[""]
        for reader, patches in zip(readers, self._vlm.encode_images(pixels), strict=True):
            reader.start(patches)
