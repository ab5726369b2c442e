"""Search over answers: writes several from copies of one state, and takes the best one.

Stage-level beam search (LLaVA-CoT, arXiv 2411.10440): at every stage the kept answers are branched, each branch is
sampled to the stage's closing tag, the best ones are kept, and so on. Best-of-N samples whole answers and takes the
best; a vote takes the CONCLUSION that most of them share. A branch costs a copy of the state, whose size does not grow
with what was read. All prompts and branches are written in one batch, as far as memory allows.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from cobra.models.generation.decoder import read_rows
from cobra.models.generation.generate import Branch, Limits, write_branches
from cobra.models.generation.memory import branches_at_once, state_bytes
from cobra.models.generation.options import SearchOptions
from cobra.models.generation.scorers import Candidate, LikelihoodScorer, sort_by_vote
from cobra.models.generation.stage_guard import StageGuard, TokenTexts
from cobra.models.mamba import MambaLM, MambaState
from cobra.util.torch_utils import send


@dataclass(frozen=True)
class SearchResult:
    """The result for one prompt."""

    text: str
    """The answer."""
    score: float
    """Value of the answer by the scorer."""
    tokens_spent: int
    """Tokens written in all branches, and those read to judge them."""
    candidates: list[Candidate]
    """Answers of the last round, the best first."""
    rounds: list[list[Candidate]] = field(repr=False)
    """Candidates of every round, the best first; only `stage-beam` has several rounds."""
    state_bytes: int = 0
    """Bytes of one branch's state; they do not grow with the text."""
    copied_bytes: int = 0
    """Bytes copied for branching: a state for each branch."""


class Search:
    """A search over the answers to a batch of prompts; :meth:`rounds` goes on stage by stage."""

    def __init__(
        self,
        llm: MambaLM,
        texts: TokenTexts,
        decode: Callable[[Sequence[int]], str],
        end_token_id: int,
        scorer: LikelihoodScorer,
        options: SearchOptions,
        between_steps: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up a search by a model in evaluation mode, with the scorer that `options` ask for.

        `decode` leaves special tokens out; `end_token_id` ends an answer without a guard; `between_steps` is called
        before every token of the branches, and what it raises ends the search.

        Raises:
            UserError: The limits leave no room for four stages.
        """
        self._llm, self._texts, self._decode = llm, texts, decode
        self._scorer, self._options, self._between_steps = scorer, options, between_steps
        by_stage = options.kind == "stage-beam"
        self._spent: list[int] = []
        self._branched: list[int] = []
        tokens = options.sampling.budget(0)
        self._limits = Limits(options.sampling, tokens, end_token_id, by_stage)
        self._guard = StageGuard(texts, tokens, options.stage_tokens) if options.guard is not False else None

    def run(
        self, state: MambaState, scores: Tensor, seeds: Sequence[str], questions: Sequence[str]
    ) -> list[SearchResult]:
        """Search to the end, as :meth:`rounds`; a vote takes a question's options as the same by letter and words."""
        rounds = list(self.rounds(state, scores, seeds))
        return [
            self._result([candidates[prompt] for candidates in rounds], prompt, question)
            for prompt, question in enumerate(questions)
        ]

    def decided(self, state: MambaState, scores: Tensor, seed: str, question: str) -> Iterator[str]:
        """Search for the answer to one prompt; yield its text piece by piece, as far as the kept answers agree."""
        yielded, rounds = "", []
        for [candidates] in self.rounds(state, scores, [seed]):
            rounds.append(candidates)
            kept = list(dict.fromkeys(candidate.text for candidate in candidates))[: self._options.kept]
            piece = os.path.commonprefix(kept)[len(yielded) :]
            if piece and self._limits.by_stage:
                yield piece
                yielded += piece
        yield self._result(rounds, 0, question).text[len(yielded) :]

    @property
    def tokens_spent(self) -> list[int]:
        """Tokens written for each prompt so far, in all branches, and those read to judge them."""
        return list(self._spent)

    def _result(self, rounds: list[list[Candidate]], prompt: int, question: str) -> SearchResult:
        last = sort_by_vote(rounds[-1], question) if self._options.kind == "vote" else rounds[-1]
        size, spent = state_bytes(self._llm.config), self._spent[prompt]
        return SearchResult(last[0].text, last[0].score, spent, last, rounds, size, size * self._branched[prompt])

    def rounds(self, state: MambaState, scores: Tensor, seeds: Sequence[str]) -> Iterator[list[list[Candidate]]]:
        """Write stage after stage, or whole answers in one go.

        Args:
            state: After the prompts, a row for each; used up.
            scores: Scores of the first new token (prompts, vocabulary), fp32.
            seeds: A seed for each prompt: its draws depend on it alone.

        Yields:
            Every prompt's candidates after a round, best first; of distinct ones :attr:`SearchOptions.kept` go on.

        Raises:
            UserError: Memory is too small for what is kept.
        """
        self._spent = [0] * len(seeds)
        self._branched = [0] * len(seeds)
        beams = [Branch(prompt, [], [], guard=self._guard and self._guard.copy()) for prompt in range(len(seeds))]
        for number in itertools.count():
            if all(branch.ended for branch in beams):
                return
            scores = self._read(beams, state, scores)
            written, state = self._round(beams, state, scores, [f"{seed}/{number}" for seed in seeds])
            yield [[self._candidate(branch) for branch in branches] for branches in written]
            beams = [branch for branches in written for branch in self._kept(branches)]

    def _candidate(self, branch: Branch) -> Candidate:
        text = self._decode(branch.ids).strip()
        return Candidate(text, branch.score, branch.mean_log_likelihood, len(branch.ids))

    def _read(self, beams: list[Branch], state: MambaState, scores: Tensor) -> Tensor:
        """Read the tokens written since, and the opening tags that come next, all at once."""
        for branch in beams:
            if branch.guard is not None:
                forced = branch.guard.take_forced()
                branch.ids += forced
                branch.unread += forced
                self._spent[branch.prompt] += len(forced)
        rows = [branch.unread for branch in beams]
        return read_rows(self._llm, rows, state) if any(rows) else scores

    def _round(
        self, beams: list[Branch], state: MambaState, scores: Tensor, seeds: Sequence[str]
    ) -> tuple[list[list[Branch]], MambaState]:
        """Branch, write, score and sort; return what there is by prompt, and the states of those that go on."""
        by_stage = self._limits.by_stage
        by_prompt = [
            [branch for branch in beams if branch.ended and branch.prompt == prompt] for prompt in range(len(seeds))
        ]
        for row, branch in enumerate(beams):
            branch.row = row
        plan = self._plan(beams, len(seeds))
        kept = len(beams) + (self._options.kept * len(seeds) if by_stage else 0)
        at_once = branches_at_once(self._llm.config, state.device, kept, len(plan), self._options.memory)
        # Rows are counted through the states that are branched, then the best of those written so far, then new ones.
        best: list[MambaState] = []
        for start in range(0, len(plan), at_once):
            written, final = self._write(beams, plan[start : start + at_once], state, scores, seeds)
            for branch in written:
                branch.row += sum(part.batch_size for part in (state, *best))
                by_prompt[branch.prompt].append(branch)
            for branches in by_prompt:
                branches.sort(key=lambda branch: -branch.score)
            if by_stage and final is not None:
                going = [branch for branches in by_prompt for branch in self._kept(branches)]
                rows = send([branch.row for branch in going], scores.device)
                best = [MambaState.join([state, *best, final]).select(rows)]
                for row, branch in enumerate(going, state.batch_size):
                    branch.row = row
        return by_prompt, best[0] if best else state

    def _kept(self, branches: list[Branch]) -> list[Branch]:
        """Return the branches of one prompt, best first, that go on; of those with the same tokens the first."""
        distinct = {tuple(branch.ids): branch for branch in reversed(branches)}
        return [branch for branch in branches if distinct[tuple(branch.ids)] is branch][: self._options.kept]

    def _plan(self, beams: list[Branch], prompts: int) -> list[tuple[int, int]]:
        """Share out every prompt's branches among its answers that go on: (row of the answer, number of the branch)."""
        going: list[list[int]] = [[] for _ in range(prompts)]
        for row, branch in enumerate(beams):
            if not branch.ended:
                going[branch.prompt].append(row)
        width = self._options.width
        return [(rows[number % len(rows)], number) for rows in going if rows for number in range(width)]

    def _write(
        self, beams: list[Branch], plan: list[tuple[int, int]], state: MambaState, scores: Tensor, seeds: Sequence[str]
    ) -> tuple[list[Branch], MambaState | None]:
        """Write and score some of the branches; return them and, where they are needed, their states."""
        index = send([row for row, _ in plan], scores.device)
        sampled = self._limits.sampling.do_sample
        branches = [
            beams[row].branch(random.Random(f"{seeds[beams[row].prompt]}/{number}") if sampled else None)
            for row, number in plan
        ]
        final = None
        if self._limits.by_stage or self._scorer.reads_state:
            final = MambaState.zeros(self._llm.config, len(plan), state.device)
        states, steps = state.select(index), self._between_steps
        write_branches(self._llm, branches, states, scores[index], self._limits, self._texts, final, steps)
        read = self._scorer.score(branches, final)
        for position, ((row, _), branch, judged) in enumerate(zip(plan, branches, read, strict=True)):
            branch.row = position
            self._branched[branch.prompt] += 1
            self._spent[branch.prompt] += len(branch.ids) - len(beams[row].ids) + judged
        return branches, final
