"""Scorers of branches: likelihood, the model's own judgement, a user's function; and the vote."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from cobra.models.backbones.llm.prompting import PromptBuilder
from cobra.models.generation.decoder import read_rows
from cobra.models.generation.generate import Branch
from cobra.models.generation.options import LIKELIHOOD
from cobra.models.mamba import MambaLM, MambaState
from cobra.reasoning.matching import conclusion_key
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.util.errors import UserError

# A function of the prompt's index in the batch and of the answer so far; higher is better.
TextScorer = Callable[[int, str], float]


@dataclass(frozen=True)
class Candidate:
    """An answer, or its beginning."""

    text: str
    """Text with its tags, without special tokens."""
    score: float
    """Value by the scorer; higher is better."""
    mean_log_likelihood: float
    """Mean log-likelihood of the tokens that the model chose."""
    tokens: int
    """Length of the answer, forced tags included."""
    votes: int = 0
    """Candidates with the same conclusion, itself included, in a vote."""


class LikelihoodScorer:
    """The mean log-likelihood of the tokens that the model chose, since the prompt; other scorers derive from it.

    The mean and not the sum: a sum falls with every token, so that among branches of one stage it takes the shortest.
    """

    reads_state = False
    """True if the scorer looks at the states."""

    def score(self, branches: Sequence[Branch], state: MambaState | None) -> list[int]:
        """Set the branches' scores, in place, and return how many tokens were read for each.

        Args:
            branches: Changed in place.
            state: A row for each, which has read all but its unread tokens, and stays as it is; None where the scorer
                reads none.
        """
        for branch in branches:
            branch.score = branch.mean_log_likelihood
        return [0] * len(branches)


@dataclass(frozen=True)
class FunctionScorer(LikelihoodScorer):
    """A user's function of the text."""

    function: TextScorer
    decode: Callable[[Sequence[int]], str]

    def score(self, branches: Sequence[Branch], state: MambaState | None) -> list[int]:
        """See :class:`LikelihoodScorer`; raise a UserError where the function returns something that is no number."""
        for branch in branches:
            value = self.function(branch.prompt, self.decode(branch.ids).strip())
            branch.score = float(value) if isinstance(value, int | float) else float("nan")
            if branch.score != branch.score:
                raise UserError(f"the scorer returned {value!r} for prompt {branch.prompt}: it must return a number")
        return [0] * len(branches)


@dataclass(frozen=True)
class JudgementScorer(LikelihoodScorer):
    """The model's own probability of `yes` against `no`, both ids, to a question put after the branch.

    The question is read on a copy of the state, so that the branch goes on as if nobody had asked.
    """

    llm: MambaLM
    question: list[int]
    yes: int
    no: int

    reads_state = True

    def score(self, branches: Sequence[Branch], state: MambaState | None) -> list[int]:
        """See :class:`LikelihoodScorer`."""
        if state is None:
            raise TypeError("a judgement needs the states")
        # An answer that ended by itself has said its end token already, with which the question begins.
        done = [branch.unread[-1:] == self.question[:1] for branch in branches]
        rows = [[*branch.unread, *self.question[end:]] for branch, end in zip(branches, done, strict=True)]
        scores = read_rows(self.llm, rows, state.clone())
        chances = scores[:, [self.yes, self.no]].softmax(-1)[:, 0].tolist()
        for branch, chance in zip(branches, chances, strict=True):
            branch.score = chance
        return [len(row) for row in rows]


def question_after_answer(builder: PromptBuilder, question: str) -> str:
    """Return a question as it follows an answer that has not been ended: its end token, and a human turn."""
    builder.add_turn("human", "?")
    turn = builder.add_turn("gpt", "!")
    before = builder.get_prompt()
    builder.add_turn("human", question)
    return turn.removeprefix("!") + builder.get_prompt().removeprefix(before)


def judgement_scorer(
    llm: MambaLM, encode: Callable[[str], list[int]], answers: dict[str, int], builder: PromptBuilder, question: str
) -> JudgementScorer:
    """Build the scorer that asks the model itself.

    Args:
        llm: The language model.
        encode: From text to ids.
        answers: Token ids of the answers that are a single token.
        builder: A new conversation in the model's format.
        question: To be answered by Yes or No.

    Raises:
        UserError: Yes or No is not a single token, or there is no question.
    """
    missing = [answer for answer in ("Yes", "No") if answer not in answers]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} is not a single token of this model, which cannot judge: use {LIKELIHOOD!r}"
        )
    if not question.strip():
        raise UserError("the question for the model's judgement is empty: it must be answered by Yes or No")
    return JudgementScorer(llm, encode(question_after_answer(builder, question)), answers["Yes"], answers["No"])


def sort_by_vote(candidates: Sequence[Candidate], question: str) -> list[Candidate]:
    """Order whole answers by how many have the same CONCLUSION, by the rule that answers are scored by.

    Args:
        candidates: Best first.
        question: The question: where it lists options, their words and letters are the same.

    Returns:
        The candidates with their votes, those of the commonest conclusion first, among them the best first. Of
        conclusions with as many votes the one with the best answer comes first. Without a conclusion there is no vote.
    """
    groups: dict[Hashable, list[Candidate]] = {}
    without: list[Candidate] = []
    for candidate in candidates:
        conclusion = extract_reasoning_trace(candidate.text).conclusion
        if conclusion:
            groups.setdefault(conclusion_key(conclusion, question), []).append(candidate)
        else:
            without.append(candidate)
    # Stable: groups with as many votes stay in the order of their best members.
    ordered = sorted(groups.values(), key=lambda members: -len(members))
    return [replace(member, votes=len(members)) for members in ordered for member in members] + without
