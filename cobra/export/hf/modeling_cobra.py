"""Cobra in transformers: towers, projector and Mamba behind `forward` and `generate`, with a cache of constant size."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.generation import utils as generation_utils
from transformers.utils import ModelOutput

from cobra.export.hf.configuration_cobra import CobraConfig
from cobra.models.backbones.vision.tower import Towers, timm_tower
from cobra.models.mamba import MambaLM, MambaState
from cobra.util.nn_utils import build_projector

# Generation passes and reorders the cache under this name; an older one would drop it, and answer nonsense.
if "cache" not in getattr(generation_utils, "ALL_CACHE_NAMES", ()):
    raise ImportError(
        "this transformers passes the cache of generation under another name than `cache`: Cobra models need a later "
        "one (pip install --upgrade transformers)"
    )

_IGNORED = -100


class CobraCache:
    """The state after all tokens so far, of constant size; generation hands it on and reorders its rows.

    Attributes:
        state: The state; None before anything was read.
        is_linear: True for each group of layers: no position is kept, so that nothing is cut out of what is passed on.
        is_compileable: False: its tensors are replaced when rows change.
    """

    is_linear = (True,)
    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        self.state: MambaState | None = None
        self._seen = 0

    def read(self, state: MambaState, positions: int) -> None:
        """Take the state after further positions."""
        self.state = state
        self._seen += positions

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions that were read, padding included."""
        return self._seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with the rows (n,) int64; rows may repeat or be left out."""
        if self.state is not None:
            self.state = self.state.select(beam_idx.to(self.state.device))

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.state is not None:
            rows = torch.arange(self.state.batch_size, device=self.state.device)
            self.reorder_cache(rows.repeat_interleave(repeats))


@dataclass
class CobraOutput(ModelOutput):
    """Result of a forward pass.

    loss: Mean cross-entropy of the next token over labelled positions; None without labels.
    logits: Scores (batch, positions, padded vocabulary), fp32.
    cache: The state after the last token, where it was asked for.
    hidden_states: Final hidden states (batch, positions, hidden size), alone in a tuple, where they were asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: CobraCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class _LanguageBackbone(nn.Module):
    """The language model under the name that it has in checkpoints of this project."""

    def __init__(self, config: CobraConfig) -> None:
        super().__init__()
        self.llm = MambaLM(config.mamba())


class CobraForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision-language model on Mamba: an image's placeholders, then text.

    Its parameters have the names of this project's safetensors files, so that each reads the other's.
    """

    config_class = CobraConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = False
    _is_stateful = True
    _no_split_modules = ["MambaBlock", "Block"]
    _tied_weights_keys = {"llm_backbone.llm.lm_head.weight": "llm_backbone.llm.backbone.embedding.weight"}
    # Rounded to bf16 these move the decay by up to 0.7 % and the step sizes by up to 1.6 %.
    _keep_in_fp32_modules_strict = ["A_log", "D", "dt_proj.bias"]

    def __init__(self, config: CobraConfig) -> None:
        super().__init__(config)
        towers = {name: timm_tower(spec) for name, spec in config.tower_specs().items()}
        self.vision_backbone = Towers(config.model.get("vision_backbone_id", "towers"), towers)
        self.llm_backbone = _LanguageBackbone(config)
        self.projector = build_projector(
            config.model.get("arch_specifier", ""), self.vision_backbone.embed_dim, config.hidden_size
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave a module as it was built: each draws its own initial values."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.llm_backbone.llm.backbone.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the embedding."""
        self.llm_backbone.llm.backbone.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.llm_backbone.llm.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the head."""
        self.llm_backbone.llm.lm_head = new_embeddings

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return image embeddings (images, image_tokens, hidden_size) of pixels (images, 3 * towers, height, width)."""
        names = self.vision_backbone.tower_names
        channels = 3 * len(names)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}: expected (images, {channels}, height, width), as the "
                "model's processor returns them"
            )
        parts = dict(zip(names, pixel_values.split(3, dim=1), strict=True))
        patches = self.vision_backbone(parts if len(parts) > 1 else pixel_values)
        return self.projector(patches.to(next(self.projector.parameters()).dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cache: CobraCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CobraOutput | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (batch, positions) int64; a row with an image has `config.image_tokens` placeholders for it.
            attention_mask: (batch, positions), 0 on padding, which may be on either side; None is no padding.
            pixel_values: Pixels of the images in the order of their rows (images, 3 * towers, height, width).
            inputs_embeds: (batch, positions, hidden_size) in place of `input_ids`, images included.
            labels: (batch, positions) int64, -100 where no loss is wanted; placeholders have none.
            cache: State after what was read before; updated in place.
            use_cache: Return the cache after the last position.
            output_hidden_states: Return the final hidden states.
            return_dict: False returns a tuple.
            logits_to_keep: Positions from the end whose logits are wanted; 0 is all.
            num_items_in_batch: Labelled tokens that the sum of the loss is divided by; None is those at hand.

        Raises:
            ValueError: Placeholders do not match the images, or neither or both of ids and embeddings are given.
        """
        llm = self.llm_backbone.llm
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds, labels = self._embed(input_ids, pixel_values, labels, cache)
        elif input_ids is not None or inputs_embeds is None:
            raise ValueError("give either input_ids or inputs_embeds")
        elif pixel_values is not None:
            raise ValueError("give pixel_values with input_ids: inputs_embeds have the images in them already")
        state = None
        if cache is not None or use_cache:
            cache = CobraCache() if cache is None else cache
            state = cache.state or MambaState.zeros(llm.config, len(inputs_embeds), inputs_embeds.device)
        hidden = self._run(inputs_embeds, attention_mask, state)
        if cache is not None and state is not None:
            cache.read(state, inputs_embeds.shape[1])
        loss = None
        logits = llm.logits(hidden[:, -logits_to_keep:] if logits_to_keep and labels is None else hidden)
        if labels is not None:
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        output = CobraOutput(loss, logits, cache, (hidden,) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output

    def _embed(
        self, input_ids: Tensor, pixel_values: Tensor | None, labels: Tensor | None, cache: CobraCache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return embeddings with images in the place of their placeholders, and labels without those."""
        embeds = self.llm_backbone.llm.embed(input_ids)
        if cache is not None and cache.state is not None:
            # In the middle of an answer: to look for placeholders would wait for a GPU at every token.
            return embeds, labels
        places = input_ids == self.config.image_token_id
        images = 0 if pixel_values is None else len(pixel_values)
        counts = places.sum(1).tolist()
        size = self.config.image_tokens
        if any(count not in (0, size) for count in counts) or sum(counts) != images * size:
            raise ValueError(
                f"the rows have {counts} placeholders of images (id {self.config.image_token_id}) and there are "
                f"{images} images: a row has {size} of them for its one image, or none; give the images to the "
                "processor together with the text, and all that it returns to the model"
            )
        if pixel_values is not None and images:
            features = self.get_image_features(pixel_values.to(embeds.device)).to(embeds.dtype)
            embeds = embeds.masked_scatter(places.unsqueeze(-1), features)
        return embeds, None if labels is None else labels.masked_fill(places, _IGNORED)

    def _run(self, embeds: Tensor, mask: Tensor | None, state: MambaState | None) -> Tensor:
        """Return final hidden states (batch, positions, hidden_size); padding on any side reaches nothing."""
        llm, positions = self.llm_backbone.llm, embeds.shape[1]
        if mask is None or positions == 1:
            return llm(embeds, state)
        valid = mask[:, -positions:].bool()
        if bool(valid.all()):
            return llm(embeds, state)
        # Tokens to the left, padding to the right, where the model holds its state still; and back.
        order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
        index = order.unsqueeze(-1).expand_as(embeds)
        hidden = llm(embeds.gather(1, index), state, valid.sum(1))
        return torch.zeros_like(hidden).scatter(1, index, hidden)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Put an empty cache where generation reorders it, unless the user has given one or wants none."""
        given = model_kwargs.get("cache")
        if given is not None and not isinstance(given, CobraCache):
            raise ValueError(f"the cache is a {type(given).__name__}: this model takes a CobraCache, or none")
        if generation_config.use_cache is not False and given is None:
            model_kwargs["cache"] = CobraCache()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: CobraCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        pixel_values: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of the next :meth:`forward`: all of the prompt, then the last token only.

        Raises:
            ValueError: There are further arguments, which the model would ignore.
        """
        if kwargs:
            raise ValueError(f"this model does not take {', '.join(sorted(kwargs))}")
        inputs: dict[str, Any] = {"cache": cache, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
        if next_sequence_length is not None:
            return inputs | {"input_ids": input_ids[:, -next_sequence_length:].contiguous()}
        inputs["attention_mask"] = attention_mask
        if inputs_embeds is None or not is_first_iteration:
            return inputs | {"input_ids": input_ids, "pixel_values": pixel_values}
        return inputs | {"inputs_embeds": inputs_embeds}
