"""Flags shared by the programs that talk to a model: the model, and how answers are written."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cobra.models.generation.options import SEARCH_SAMPLING, GenerationOptions, SearchOptions
from cobra.util.home_paths import PathText
from cobra.util.tokens import read_hf_token

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM

_SAMPLING = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass
class TalkFlags:
    """The model and how its answers are written."""

    model_path: PathText = "cobra+3b"
    """Model: a run directory, a checkpoint file in one, or a model id; `cobra-tiny` needs no network."""
    hf_token: PathText = ".hf_token"
    """Environment variable or file that holds the hub's token; needed for closed repositories only."""
    do_sample: bool = False
    """Sample instead of taking the best token at every step; a search always samples."""
    temperature: float | None = None
    """Divisor of the scores before sampling. Default: 1.0, in a search 0.6."""
    top_k: int = 0
    """Sample among the k best tokens; 0 is all."""
    top_p: float | None = None
    """Sample among the smallest set of best tokens whose probability exceeds this. Default: 1.0, in a search 0.9."""
    min_p: float = 0.0
    """Sample among tokens at least this times as probable as the best; 0.0 is all."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that are in prompt or answer already; 1.0 is none. A search takes none."""
    max_new_tokens: int = 512
    """Most tokens of an answer."""
    seed: int = 7
    """Seed of sampling; every answer starts from it."""
    search: str = "none"
    """Search for the answer: none, best-of-n, vote (the CONCLUSION that most share) or stage-beam (the best of several
    at every stage)."""
    beams: int = 4
    """Answers, or branches of each stage for stage-beam, that a search chooses from."""
    device: str | None = None
    """Device: cuda, mps or cpu. Default: the best one available."""
    dtype: str | None = None
    """Precision: fp32, bf16 or fp16. Default: fp32 on a CPU, fp16 on mps, bf16 on CUDA."""

    def load_model(self) -> "CobraVLM":
        """Load the model, in evaluation mode."""
        from cobra import load

        return load(self.model_path, hf_token=read_hf_token(self.hf_token), device=self.device, dtype=self.dtype)

    def options(self, search: str | None = None) -> GenerationOptions | SearchOptions:
        """Return the options of an answer, `search` in place of the flag; a UserError where they do not go together."""
        kind = self.search if search is None else search
        given = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if kind == "none":
            return GenerationOptions(**given, seeds=[self.seed])
        return SearchOptions(kind, self.beams, replace(SEARCH_SAMPLING, **given))
