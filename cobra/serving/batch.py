"""The running batch: the answers that are being written, a row of a state for each."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from cobra.models.generation.cuda_graph import open_decoder
from cobra.models.generation.decoder import Decoder
from cobra.models.generation.options import GenerationOptions
from cobra.models.generation.sampling import choose, next_numbers
from cobra.models.generation.stage_guard import TokenTexts
from cobra.models.mamba import MambaState
from cobra.models.vlms import CobraVLM
from cobra.serving.jobs import Job, Row
from cobra.serving.reading import Reader
from cobra.util.torch_utils import Receipt, send


class Batch:
    """Rows that join and leave between steps; a step is :meth:`write` and then :meth:`read`.

    Attributes:
        rows: The answers, in the order of the state's rows.
    """

    def __init__(self, vlm: CobraVLM) -> None:
        self.rows: list[Row] = []
        self._vlm, self._llm = vlm, vlm.llm_backbone.llm
        self._end = int(vlm.llm_backbone.tokenizer.eos_token_id)
        self._texts = TokenTexts(vlm.decode, vlm.encode)
        self._decoder: Decoder | None = None
        # Of the next token: scores (rows, vocabulary); and rows by their options, None where they have changed.
        self._scores: Tensor | None = None
        self._groups: list[tuple[GenerationOptions, list[int]]] | None = None
        # Between `write` and `read`: tokens of all rows, places of those that go on, and scores where read ahead.
        self._tokens: Tensor | None = None
        self._places: list[int] = []
        self._ahead: Tensor | None = None

    @property
    def jobs(self) -> list[Job]:
        """Requests that have rows here."""
        return list(dict.fromkeys(row.job for row in self.rows))

    def join(self, arrivals: Sequence[tuple[Reader, Tensor]]) -> None:
        """Let prompts that have been read, with their scores (1, vocabulary), join with a row for each answer.

        What it raises, as for want of memory, leaves the rows that are here as they were.
        """
        if not arrivals:
            return
        rows: list[Row] = []
        states, scores = [], [] if self._scores is None else [self._scores]
        for reader, each in arrivals:
            job, ids = reader.job, reader.prompt.ids
            states.append(reader.state.select(send([0] * job.count, each.device)))
            scores.append(each.expand(job.count, -1))
            job.began = time.perf_counter()
            end = self._end if job.options.eos_token_id is None else job.options.eos_token_id
            for row in job.rows:
                row.begin(len(ids), end, self._decode)
                if job.options.repetition_penalty != 1.0:
                    row.seen = torch.zeros(each.shape[1], dtype=torch.bool, device=each.device)
                    row.seen[list(ids)] = True
                rows.append(row)
        state = states[0] if len(states) == 1 else MambaState.join(states)
        # Copied first: a decoder's scores are valid until it is called again.
        joined = torch.cat(scores)
        if self._decoder is None:
            self._decoder = open_decoder(self._llm, state)
        else:
            self._decoder.join(state)
        self.rows, self._scores, self._groups = [*self.rows, *rows], joined, None

    def write(self) -> tuple[list[Job], list[Job]]:
        """Choose a token for every row, and add it to the row's answer.

        Returns:
            Requests of which an answer has got its first token or ended, and those whose answers have all ended.
        """
        assert self._decoder is not None and self._scores is not None
        tokens = self._tokens = self._choose(self._scores)
        receipt = Receipt(tokens)
        is_last = all(row.left <= 1 for row in self.rows)
        self._ahead = self._decoder.read(tokens) if self._decoder.reads_ahead and not is_last else None
        news, places = [], []
        for place, (row, token) in enumerate(zip(self.rows, receipt.read(), strict=True)):
            if row.seen is not None:
                row.seen[token] = True
            if row.add(token):
                news.append(row.job)
            else:
                places.append(place)
                if row.written == 1:
                    news.append(row.job)
        self._places = places
        if len(places) < len(self.rows):
            self.rows, self._groups = [self.rows[place] for place in places], None
        news = list(dict.fromkeys(news))
        return news, [job for job in news if all(row.finish_reason for row in job.rows)]

    def read(self) -> None:
        """Read the tokens into the states of the rows that go on."""
        assert self._decoder is not None and self._tokens is not None
        if not self.rows:
            self.clear()
        elif self._ahead is None:
            self._scores = self._decoder.advance(self._tokens, self._places)
        else:
            self._scores = self._decoder.settle(self._ahead, self._places)

    def drop(self, job: Job) -> None:
        """Take a request's rows out; after an error no row can go on, and :meth:`clear` must follow."""
        places = [place for place, row in enumerate(self.rows) if row.job is not job]
        if len(places) == len(self.rows):
            return
        self.rows, self._groups = [self.rows[place] for place in places], None
        if not places:
            self.clear()
            return
        assert self._decoder is not None and self._scores is not None
        kept = send(places, self._scores.device)
        self._scores = self._scores[kept]
        self._decoder.keep(kept)

    def clear(self) -> None:
        """Forget all rows."""
        if self._decoder is not None:
            self._decoder.close()
        self.rows, self._groups = [], None
        self._decoder = self._scores = self._tokens = self._ahead = None

    def _choose(self, scores: Tensor) -> Tensor:
        """Return a token (rows,) int64 for every row, each by its own options; rows of the same are taken together."""
        if self._groups is None:
            groups: dict[GenerationOptions, list[int]] = {}
            for place, row in enumerate(self.rows):
                groups.setdefault(row.job.choice, []).append(place)
            self._groups = list(groups.items())
        if len(self._groups) == 1:
            return self._choose_alike(scores, self.rows, self._groups[0][0])
        tokens = torch.empty(len(scores), dtype=torch.long, device=scores.device)
        for options, places in self._groups:
            index = send(places, scores.device)
            tokens[index] = self._choose_alike(scores[index], [self.rows[place] for place in places], options)
        return tokens

    def _choose_alike(self, scores: Tensor, rows: Sequence[Row], options: GenerationOptions) -> Tensor:
        seen = None
        if options.repetition_penalty != 1.0:
            seen = torch.stack([row.seen for row in rows if row.seen is not None])
        streams = [row.stream for row in rows if row.stream is not None]
        return choose(scores, options, seen, next_numbers(streams, scores.device) if streams else None)

    def _decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; of a single one without asking the tokenizer again."""
        if len(ids) == 1:
            return self._texts[ids[0]]
        return self._vlm.decode(ids) if ids else ""
