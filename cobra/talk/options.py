"""Flags on how answers are written, shared by the programs that talk to a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cobra.util.errors import UserError

if TYPE_CHECKING:
    from cobra.models.vlms import GenerationOptions, SearchOptions


@dataclass
class AnswerFlags:
    """How answers are written."""

    do_sample: bool = False
    """Sample instead of taking the best token at every step; a search always samples."""
    temperature: float | None = None
    """Of sampling; by default 1.0, in a search 0.6."""
    top_k: int = 0
    """Sample among the k best tokens; 0 is all."""
    top_p: float | None = None
    """Sample among the smallest set of best tokens whose probability exceeds this; by default 1.0, in a search 0.9."""
    min_p: float = 0.0
    """Sample among tokens at least this times as probable as the best; 0.0 is all."""
    repetition_penalty: float = 1.0
    """Makes tokens of prompt and answer less likely to come again; 1.0 changes nothing. Not in a search."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    seed: int = 7
    """Of sampling; every answer starts from it."""
    search: str = "none"
    """none, best-of-n, vote (the CONCLUSION that most share) or stage-beam (the best of several at every stage)."""
    beams: int = 4
    """Answers, in stage-beam branches of every stage, that a search chooses from."""

    def options(self, search: str | None = None) -> "GenerationOptions | SearchOptions":
        """Return the options of an answer.

        Args:
            search: In place of the flag.

        Raises:
            UserError: A value is out of its range, or a search does not know it.
        """
        from cobra.models.vlms import GenerationOptions, SearchOptions

        kind = self.search if search is None else search
        given: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        given = {name: value for name, value in given.items() if value is not None}
        given |= {"top_k": self.top_k, "min_p": self.min_p, "max_new_tokens": self.max_new_tokens}
        if kind == "none":
            given |= {"do_sample": self.do_sample, "repetition_penalty": self.repetition_penalty}
            return GenerationOptions(**given, seeds=[self.seed])
        options = SearchOptions(kind, self.beams, **given)
        if self.repetition_penalty != 1.0:
            raise UserError(
                f"a search knows no repetition penalty, and {self.repetition_penalty} is asked for: leave out "
                "--repetition_penalty or --search"
            )
        return options
