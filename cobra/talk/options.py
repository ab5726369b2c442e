"""Flags shared by the programs that talk to a model: the model, and how answers are written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cobra.models.generation.options import AnswerOptions
from cobra.util.home_paths import PathText
from cobra.util.tokens import read_hf_token

if TYPE_CHECKING:
    from cobra.models.vlms import CobraVLM


@dataclass
class ModelFlags:
    """The model that is talked to."""

    model_path: PathText = "cobra+3b"
    """Model: a run directory, a checkpoint file in one, or a model id; `cobra-tiny` needs no network."""
    hf_token: PathText = ".hf_token"
    """Environment variable or file that holds the hub's token; needed for closed repositories only."""
    device: str | None = None
    """Device: cuda, mps or cpu. Default: the best one available."""
    dtype: str | None = None
    """Precision: fp32, bf16 or fp16. Default: fp32 on a CPU, fp16 on mps, bf16 on CUDA."""
    quantize: str | None = None
    """Keep the large matrices of the language model in nf4 (a quarter of the memory of bf16) or int8 (half)."""

    def load_model(self) -> "CobraVLM":
        """Load the model, in evaluation mode."""
        from cobra import load

        token = read_hf_token(self.hf_token)
        return load(self.model_path, token, device=self.device, dtype=self.dtype, quantize=self.quantize)


@dataclass
class TalkFlags(AnswerOptions, ModelFlags):
    """The model and how its answers are written."""

    seed: int = 7
