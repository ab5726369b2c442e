"""Flags of decoding, shared by the programs that talk to a model."""

from dataclasses import dataclass, replace

from cobra.models.generation.options import SEARCH_SAMPLING, GenerationOptions, SearchOptions

_SAMPLING = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass
class AnswerFlags:
    """Options of decoding."""

    do_sample: bool = False
    """Sample instead of taking the best token at every step; a search always samples."""
    temperature: float | None = None
    """Temperature of sampling; by default 1.0, in a search 0.6."""
    top_k: int = 0
    """Sample among the k best tokens; 0 is all."""
    top_p: float | None = None
    """Sample among the smallest set of best tokens whose probability exceeds this; by default 1.0, in a search 0.9."""
    min_p: float = 0.0
    """Sample among tokens at least this times as probable as the best; 0.0 is all."""
    repetition_penalty: float = 1.0
    """Make tokens of prompt and answer less likely to come again; 1.0 changes nothing. Not in a search."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    seed: int = 7
    """Seed of sampling; every answer starts from it."""
    search: str = "none"
    """none, best-of-n, vote (the CONCLUSION that most share) or stage-beam (the best of several at every stage)."""
    beams: int = 4
    """Answers, in stage-beam branches of every stage, that a search chooses from."""

    def options(self, search: str | None = None) -> GenerationOptions | SearchOptions:
        """Return the options of an answer.

        Args:
            search: In place of the flag.

        Raises:
            UserError: A value is out of its range, or a search does not know it.
        """
        kind = self.search if search is None else search
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if kind == "none":
            return GenerationOptions(**given, seeds=[self.seed])
        return SearchOptions(kind, self.beams, replace(SEARCH_SAMPLING, **given))
