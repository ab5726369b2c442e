"""Registered language models and the specs by which others are registered."""

from dataclasses import dataclass
from pathlib import Path

from cobra.util.errors import lookup

# The tokenizer of all models of state-spaces, whose repositories hold none.
NEOX_TOKENIZER = "EleutherAI/gpt-neox-20b"

TINY_FOLDER = Path(__file__).parents[2] / "tiny"


@dataclass(frozen=True)
class LLMSpec:
    """Source of a Mamba language model: a repository of the hub, or a local folder with `config.json`."""

    source: str | Path
    """A hub repository, or a local folder. It holds `config.json` in either published format and, unless
    `pretrained` is False, `model.safetensors` or `pytorch_model.bin`."""
    tokenizer: str | Path | None = None
    """A hub repository or local folder; None is `source`."""
    pretrained: bool = True
    """False leaves random initial values, for training from scratch."""


LLM_BACKBONES: dict[str, LLMSpec] = {
    "mamba-2.8b-slimpj": LLMSpec("state-spaces/mamba-2.8b-slimpj", NEOX_TOKENIZER),
    "mamba-2.8b": LLMSpec("state-spaces/mamba-2.8b", NEOX_TOKENIZER),
    "mamba-1.4b": LLMSpec("state-spaces/mamba-1.4b", NEOX_TOKENIZER),
    "mamba-2.8b-zephyr": LLMSpec("xiuyul/mamba-2.8b-zephyr"),
    "mamba-0.5m-zephyr": LLMSpec(TINY_FOLDER),
    # The same model at random initial values: where the training of cobra-tiny starts.
    "mamba-0.5m-init-zephyr": LLMSpec(TINY_FOLDER, pretrained=False),
}


def register_llm_backbone(llm_backbone_id: str, spec: LLMSpec) -> None:
    """Make a language model of any size known under an id, for research and tests; a known id is replaced.

    The id decides the prompt format: ending in `zephyr` is Zephyr's chat, else starting with `mamba` is `In:/Out:`.
    """
    LLM_BACKBONES[llm_backbone_id] = spec


def llm_spec(llm_backbone_id: str) -> LLMSpec:
    """Return the registered specification, or raise a UserError that lists the known ids."""
    return lookup(LLM_BACKBONES, llm_backbone_id, "the language model")
