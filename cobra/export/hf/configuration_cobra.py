"""Configuration of a Cobra model in transformers: everything that it is built of, so that nothing is fetched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from transformers import PretrainedConfig

from cobra.models.backbones.vision.tower_spec import TowerSpec
from cobra.models.mamba import MambaConfig

# Raised when a folder of before can no longer be read.
VERSION = 1


class CobraConfig(PretrainedConfig):
    """Sizes of towers, projector and language model, and the ids of special tokens.

    Args:
        model: Ids that this project builds the model from: `model_id`, `arch_specifier`, `vision_backbone_id`,
            `llm_backbone_id`, `image_resize_strategy`, `llm_max_length`.
        towers: Vision towers by name: `timm_id`, `image_size` and `kwargs` of each.
        language_model: Fields of the language model's :class:`MambaConfig`.
        image_tokens: Positions that an image takes.
        image_token_id: Id of the placeholder `<image>`, one of the padded vocabulary that no text gives.
        cobra_version: Version of this form.
        **kwargs: See `PretrainedConfig`.

    Raises:
        ValueError: It is of a later version, or describes no such model.
    """

    model_type = "cobra_vlm"
    write_code: ClassVar[Callable[[Path], None] | None] = None
    """Writes the code for machines without this package beside a saved configuration; set by the package alone."""

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        towers: dict[str, dict[str, Any]] | None = None,
        language_model: dict[str, Any] | None = None,
        image_tokens: int = 0,
        image_token_id: int | None = None,
        cobra_version: int = VERSION,
        **kwargs: Any,
    ) -> None:
        if cobra_version > VERSION:
            raise ValueError(
                f"this Cobra model is of version {cobra_version} of its form, and this code reads up to {VERSION}: "
                "update the package (pip install --upgrade cobra-vlm), or load it with trust_remote_code=True"
            )
        self.model = model or {}
        self.towers = towers or {}
        self.language_model = language_model or {}
        self.image_tokens = image_tokens
        self.image_token_id = image_token_id
        self.cobra_version = cobra_version
        kwargs.setdefault("tie_word_embeddings", True)
        for name in ("pad_token_id", "eos_token_id", "bos_token_id", "tie_word_embeddings"):
            setattr(self, name, kwargs.pop(name, None))
        super().__init__(**kwargs)

    def mamba(self) -> MambaConfig:
        """Return the language model's configuration; a ValueError where it lacks a size."""
        if not self.language_model:
            raise ValueError(f"this configuration of a {self.model_type} has no language_model: it is not whole")
        return MambaConfig(**self.language_model)

    def tower_specs(self) -> dict[str, TowerSpec]:
        """Return the towers' specifications by name; a ValueError where there are none."""
        if not self.towers:
            raise ValueError(f"this configuration of a {self.model_type} has no towers: it is not whole")
        return {name: TowerSpec(**fields) for name, fields in self.towers.items()}

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, padding included; 0 in a configuration that is not whole, which is checked too."""
        return self.mamba().padded_vocab_size if self.language_model else 0

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.mamba().d_model

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the language model."""
        return self.mamba().n_layer

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the configuration, and where it names code, that code."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_code = type(self).write_code
        if write_code is not None and getattr(self, "auto_map", None):
            write_code(Path(save_directory))
