"""The language model of a vision-language model: Mamba, its tokenizer and its prompt format."""

from contextlib import suppress
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cobra.models.backbones.llm.prompting import MambaPromptBuilder, PromptBuilder, ZephyrChatPromptBuilder
from cobra.models.backbones.llm.specs import LLMSpec
from cobra.models.hub import check_hub, fetch
from cobra.models.mamba import MambaConfig, MambaLM
from cobra.models.tensors import load_strictly, read_llm_weights
from cobra.util.errors import UserError
from cobra.util.files import read_json
from cobra.util.redaction import reason

_PADDING = "<|padding|>"
_WEIGHTS = ["model.safetensors", "pytorch_model.bin"]


class MambaLLMBackbone(nn.Module):
    """A Mamba language model under the names of Cobra's checkpoints (`llm.backbone.*`, `llm.lm_head.weight`).

    Attributes:
        identifier: The id in the registry; it decides the prompt format.
        llm: The model.
        tokenizer: GPT-NeoX's kind: no begin token, `<|endoftext|>` (id 0) ends a turn, right padding and truncation.
        embed_dim: Width of the embeddings.
    """

    def __init__(self, identifier: str, config: MambaConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.identifier = identifier
        self.llm = MambaLM(config)
        self.tokenizer = tokenizer
        self.embed_dim = config.d_model

    @property
    def prompt_builder_fn(self) -> type[PromptBuilder]:
        """The prompt builder that belongs to this model."""
        return prompt_builder_of(self.identifier)


def prompt_builder_of(identifier: str) -> type[PromptBuilder]:
    """Return the prompt builder that belongs to a language model's id; a UserError if none does."""
    if identifier.endswith("zephyr"):
        return ZephyrChatPromptBuilder
    if identifier.startswith("mamba"):
        return MambaPromptBuilder
    raise UserError(f"no prompt format belongs to {identifier!r}: its id must end in 'zephyr' or start with 'mamba'")


def build_llm_backbone(
    identifier: str, spec: LLMSpec, max_length: int, token: str | None, load_weights: bool
) -> MambaLLMBackbone:
    """Build a language model and its tokenizer from a local folder or the hub.

    Args:
        identifier: Name of the model.
        spec: Its source.
        max_length: Tokens at which text is cut.
        token: Access token of the hub.
        load_weights: False leaves random values, for a checkpoint that brings the language model with it.

    Raises:
        UserError: A file is missing or damaged, is not of a Mamba-1 model, or model and tokenizer do not fit.
    """
    config = read_mamba_config(_find_file(spec.source, ["config.json"], token))
    tokenizer = load_tokenizer(spec.tokenizer or spec.source, max_length, token)
    if len(tokenizer) > config.padded_vocab_size:
        raise UserError(
            f"the tokenizer of {spec.source} has {len(tokenizer)} tokens and the language model "
            f"{config.padded_vocab_size}: they do not belong together"
        )
    backbone = MambaLLMBackbone(identifier, config, tokenizer)
    if load_weights and spec.pretrained:
        path = _find_file(spec.source, _WEIGHTS, token)
        load_strictly(backbone.llm, read_llm_weights(path), "language model", path)
    return backbone


def read_mamba_config(path: Path) -> MambaConfig:
    """Read a `config.json`; see :meth:`MambaConfig.from_dict`."""
    return MambaConfig.from_dict(read_json(path, "the language model's config"), str(path))


def fetch_llm_files(spec: LLMSpec, token: str | None, with_weights: bool) -> None:
    """Fetch the files of a language model into the hub's cache: configuration, tokenizer and, if asked for, weights.

    Raises:
        UserError: A file cannot be fetched, or is not one of a language model.
    """
    _find_file(spec.source, ["config.json"], token)
    load_tokenizer(spec.tokenizer or spec.source, 1, token)
    if with_weights and spec.pretrained:
        _find_file(spec.source, _WEIGHTS, token)


def load_tokenizer(source: str | Path, max_length: int, token: str | None = None) -> PreTrainedTokenizerBase:
    """Load a GPT-NeoX tokenizer from a hub repository or a local folder.

    Args:
        source: Repository or folder with `tokenizer.json`.
        max_length: Tokens at which text is cut, on the right.
        token: Access token of the hub.

    Raises:
        UserError: There is no tokenizer, or it is damaged or has no end token.
    """
    if isinstance(source, Path):
        _find_file(source, ["tokenizer.json"], None)
    else:
        check_hub()
    # The plain class reads tokenizer.json as it is; transformers 5's GPTNeoXTokenizer rebuilds its pipeline.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            str(source),
            token=token,
            model_max_length=max_length,
            padding_side="right",
            truncation_side="right",
            clean_up_tokenization_spaces=False,
        )
    # The tokenizers library raises plain Exceptions on files that are not its own.
    except Exception as error:
        raise UserError(f"the tokenizer {source} cannot be loaded: {reason(error)}") from error
    if tokenizer.eos_token is None:
        raise UserError(f"the tokenizer {source} has no end token (eos_token), so that no answer would end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _PADDING if _PADDING in tokenizer.get_vocab() else tokenizer.eos_token
    return tokenizer


def _find_file(source: str | Path, names: list[str], token: str | None) -> Path:
    """Return the first of the named files that the folder or repository has."""
    if isinstance(source, Path):
        path = next((source / name for name in names if (source / name).is_file()), None)
        if path is None:
            raise UserError(f"the language model's folder {source} has no {' or '.join(names)}")
        return path
    for name in names[:-1]:
        with suppress(UserError):
            return fetch(source, name, token)
    return fetch(source, names[-1], token)
