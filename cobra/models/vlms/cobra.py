"""CobraVLM: vision towers, a projector and Mamba, joined as one model.

One image a row, before the text: the model reads a row as all patches of its image, where it has one, and then its
tokens; `<image>` in a text marks no place. The following rely on it:

- rows: `image` is one path (`preprocessing.datasets.row_keys`), `<image>` is taken out of the turns
  (`backbones.llm.prompting`), and a row's length is its text plus a constant (`preprocessing.datasets.datasets`);
- batches: `multimodal_indices` has each row once and `pixel_values` one picture for each (`util.data_utils`), and the
  sampler separates rows with an image from rows of text (`util.batching_utils`);
- the loss: the first token of a row with an image is predicted from the last patch (`training.batches`);
- positions, FLOPs and memory: a row with an image has `image_tokens` more (`training.strategy`, `training.planning`);
- inference: the state after the patches is a prefix for any prompt (:meth:`CobraVLM.read_images`), which conversations
  (`talk.conversation`) and the benchmark's questions about one image share.
"""

import glob
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.backbones.vision import PixelValues, VisionBackbone
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.models.checkpoint import MODULE_KEYS, Checkpoint, read_checkpoint, read_whole_model
from cobra.models.mamba import MambaState
from cobra.models.quantized import count_parameters, quantization_of
from cobra.models.run_folder import LATEST
from cobra.models.tensors import load_strictly
from cobra.models.vlms.asking_mixin import AskingMixin
from cobra.models.vlms.generation_mixin import single_token_answers
from cobra.util.data_utils import IGNORE_INDEX
from cobra.util.errors import UserError, check_known
from cobra.util.files import sha256_file
from cobra.util.nn_utils import build_projector, projected_positions

STAGES = ("align", "finetune", "full-finetune")

# Modules that each stage trains; the others are frozen.
_TRAINED = {
    "align": ("projector",),
    "finetune": ("projector", "llm_backbone"),
    "full-finetune": ("vision_backbone", "projector", "llm_backbone"),
}


@dataclass
class VLMOutput:
    """Result of a forward pass.

    loss: Cross-entropy over labelled tokens in fp32: mean or sum, a scalar, or the sum of each row (batch,), in the
        batch's order; None without labels.
    logits: (batch, patches + text, vocabulary), rows with an image first; None when they were not asked for.
    past_key_values: The inference state after the last token, when `use_cache`.
    hidden_states: Final hidden states (batch, patches + text, d_model), when `output_hidden_states`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: MambaState | None = None
    hidden_states: Tensor | None = None


class CobraVLM(AskingMixin, nn.Module):
    """A vision-language model whose inference state has constant size.

    Attributes:
        model_id: Name of the model.
        is_stock: Loaded as released; False for models trained by this project.
        checkpoint_path: The file that :func:`cobra.load` read the weights from, or None.
        string2idx: Token id of each single-token answer.
    """

    def __init__(
        self,
        model_id: str,
        vision_backbone: VisionBackbone,
        llm_backbone: MambaLLMBackbone,
        arch_specifier: str = "no-align+fused-gelu-mlp",
        enable_mixed_precision_training: bool = True,
    ) -> None:
        super().__init__()
        self.model_id = model_id
        self.arch_specifier = arch_specifier
        self.enable_mixed_precision_training = enable_mixed_precision_training
        self.vision_backbone = vision_backbone
        self.llm_backbone = llm_backbone
        self.projector = build_projector(arch_specifier, vision_backbone.embed_dim, llm_backbone.embed_dim)
        self.trainable_module_keys: list[str] = []
        self.altered_module_keys: set[str] = set()
        self.is_stock = False
        self.checkpoint_path: Path | None = None
        self.string2idx = single_token_answers(llm_backbone.tokenizer)

    def __repr__(self) -> str:
        parts = {
            "vision_backbone": self.vision_backbone.identifier,
            "projector": self.arch_specifier.removeprefix("no-align+"),
            "llm_backbone": self.llm_backbone.identifier,
        }
        counts = {key: count_parameters(getattr(self, key)) for key in parts}
        lines = [f"  {key:<15}  {name}, {counts[key] / 1e6:,.2f} M parameters" for key, name in parts.items()]
        precision = str(self.dtype).removeprefix("torch.") + (
            f", quantised to {self.quantized}" if self.quantized else ""
        )
        return "\n".join([f"CobraVLM {self.model_id!r} on {self.device} in {precision}", *lines])

    @classmethod
    def from_pretrained(
        cls,
        pretrained_checkpoint: str | Path,
        model_id: str,
        vision_backbone: VisionBackbone,
        llm_backbone: MambaLLMBackbone,
        enable_mixed_precision_training: bool = True,
        arch_specifier: str = "no-align+fused-gelu-mlp",
        freeze_weights: bool = True,
    ) -> "CobraVLM":
        """Build a model from backbones and load a checkpoint into it.

        Args:
            pretrained_checkpoint: A `.pt` in Cobra's layout or a `.safetensors` of this project.
            model_id: Name of the model.
            vision_backbone: Towers; overwritten where the checkpoint holds towers.
            llm_backbone: Language model; overwritten where the checkpoint holds one.
            enable_mixed_precision_training: Kept as an attribute for training.
            arch_specifier: Projector.
            freeze_weights: Put the model into evaluation mode without gradients.

        Raises:
            UserError: The checkpoint cannot be read, holds no projector, or is of another architecture.
        """
        vlm = cls(model_id, vision_backbone, llm_backbone, arch_specifier, enable_mixed_precision_training)
        vlm.load_modules(read_whole_model(Path(pretrained_checkpoint)), pretrained_checkpoint)
        return vlm.requires_grad_(False).eval() if freeze_weights else vlm

    @property
    def image_tokens(self) -> int:
        """Positions of the language model that an image takes: its patches, or what the projector pools them to."""
        return projected_positions(self.projector, self.vision_backbone.num_patches)

    @cached_property
    def checkpoint_sha256(self) -> str:
        """Hash of the file the weights were read from, or empty without one; made when first asked for, once."""
        return "" if self.checkpoint_path is None else sha256_file(self.checkpoint_path)

    @property
    def checkpoint_modules(self) -> list[str]:
        """Modules that a checkpoint must hold, in a fixed order: those trained or loaded with values not their own."""
        return [key for key in MODULE_KEYS if key in self.altered_module_keys or key in self.trainable_module_keys]

    def load_modules(self, checkpoint: Checkpoint, where: str | Path) -> list[str]:
        """Load every module that a checkpoint holds, strictly; return their names. Errors name its source, `where`."""
        for key, tensors in checkpoint.items():
            if load_strictly(getattr(self, key), tensors, key, where):
                self.altered_module_keys.add(key)
        return list(checkpoint)

    def load_from_checkpoint(self, stage: str, run_dir: Path, pretrained_checkpoint: Path | None = None) -> list[str]:
        """Load every module of a stage's start: a checkpoint if given, else the model's own align run if it needs one.

        The align run is looked for beside `run_dir`, this run's directory.

        Returns:
            The names of the loaded modules; empty where the stage starts from the bare backbones.

        Raises:
            UserError: The architecture needs an align run and there is none, or a file is not of this architecture.
        """
        path = pretrained_checkpoint or self.find_align_checkpoint(stage, run_dir)
        return [] if path is None else self.load_modules(read_checkpoint(path), path)

    def find_align_checkpoint(self, stage: str, run_dir: Path) -> Path | None:
        """Return the checkpoint of the model's own align run, or None where the stage needs none.

        Raises:
            UserError: It is needed and there is none, or there are several (of other datasets) to choose from.
        """
        if stage == "align" or self.arch_specifier.startswith("no-align"):
            return None
        # Runs end in their seed; one with a name of the user's own may start from any.
        seed = re.search(r"x\d+$", run_dir.name)
        pattern = f"*{glob.escape(self.model_id)}+stage-align+{seed.group() if seed else 'x*'}"
        checkpoints = sorted(run_dir.parent.glob(f"{pattern}/{LATEST.as_posix()}"))
        if len(checkpoints) == 1:
            return checkpoints[0]
        many = f"there are {len(checkpoints)}: {', '.join(str(path) for path in checkpoints)}. Choose one with"
        none = "there is none with a checkpoint: run scripts/pretrain.py with --stage align first, or give"
        raise UserError(
            f"the architecture {self.arch_specifier!r} needs a projector from its align stage, a run {pattern} in "
            f"{run_dir.parent}, and {many if checkpoints else none} --pretrained_checkpoint"
        )

    @property
    def quantized(self) -> str | None:
        """The kind in which the large matrices of the language model are quantised; None where they are not."""
        return quantization_of(self.llm_backbone)

    def freeze_backbones(self, stage: str) -> None:
        """Let gradients flow into just the modules that a stage trains.

        Raises:
            UserError: The stage is unknown, or trains a language model that is quantised.
        """
        check_stage(stage)
        if self.quantized and "llm_backbone" in _TRAINED[stage]:
            raise UserError(
                f"the stage {stage} trains the language model, whose weights are quantised to {self.quantized} and "
                "cannot be: load the model without `quantize`, and train adapters on it (--lora.rank 16 "
                f"--lora.quantize {self.quantized})"
            )
        self.trainable_module_keys = list(_TRAINED[stage])
        for key in MODULE_KEYS:
            getattr(self, key).requires_grad_(key in _TRAINED[stage])

    def train(self, mode: bool = True) -> "CobraVLM":
        """Switch between training and evaluation; a frozen vision tower always stays in evaluation."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision_backbone.parameters()):
            self.vision_backbone.eval()
        return self

    def encode_images(self, pixel_values: PixelValues) -> Tensor:
        """Return image embeddings (batch, patches, d_model) of pixels; towers without gradients keep no graph."""
        trained = any(parameter.requires_grad for parameter in self.vision_backbone.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            patches = self.vision_backbone(pixel_values)
        return self.projector(patches.to(next(self.projector.parameters()).dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: PixelValues | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: MambaState | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        multimodal_indices: Tensor | None = None,
        loss_reduction: str = "mean",
        return_logits: bool = True,
    ) -> VLMOutput:
        """Run the model on a batch of rows padded on the right.

        Args:
            input_ids: (batch, text) int64.
            attention_mask: Accepted for compatibility: the model is causal, so right padding changes nothing.
            pixel_values: Pixels of all rows (batch, 3, height, width), by tower; rows of text only are not looked at.
            labels: (batch, text) int64, -100 where no loss is wanted.
            inputs_embeds: (batch, time, d_model) in place of `input_ids`; labels then have its length.
            past_key_values: State after what was read before; updated in place. Images come before it, not after.
            use_cache: Return the state after the last position; only of use for rows without padding.
            output_attentions: Accepted for compatibility: there are none.
            output_hidden_states: Return the final hidden states.
            return_dict: Accepted for compatibility: a dataclass is returned.
            multimodal_indices: Rows that have an image (n,) int64; None is every row when there are pixels.
            loss_reduction: `mean` over the labelled tokens of the batch, their `sum`, or `rows`, the sum of each row.
            return_logits: False leaves the logits out; the loss then costs memory for labelled positions only.
        """
        if inputs_embeds is None:
            if not isinstance(input_ids, Tensor):
                raise UserError(
                    "forward needs input_ids or inputs_embeds, as tensors; vlm.ask(image, question) answers a question"
                )
            inputs_embeds, labels = self._embed(input_ids, pixel_values, labels, multimodal_indices)
        if (state := past_key_values) is None and use_cache:
            state = MambaState.zeros(self.llm_backbone.llm.config, len(inputs_embeds), inputs_embeds.device)
        hidden = self.llm_backbone.llm(inputs_embeds, state)
        loss = None if labels is None else self._loss(hidden, labels, loss_reduction)
        images = None if pixel_values is None else multimodal_indices
        if loss is not None and loss_reduction == "rows" and images is not None:
            # Rows with an image come first in the model.
            loss = loss[torch.cat([images, _rows_without_image(len(loss), images)]).argsort()]
        return VLMOutput(
            loss=loss,
            logits=self.llm_backbone.llm.logits(hidden) if return_logits else None,
            past_key_values=state,
            hidden_states=hidden if output_hidden_states else None,
        )

    def _embed(
        self, input_ids: Tensor, pixel_values: PixelValues | None, labels: Tensor | None, images: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Join patches and text as the module says: first rows with an image, [patches ; text], then [text ; zeros]."""
        text = self.llm_backbone.llm.embed(input_ids)
        if pixel_values is None or (images is not None and len(images) == 0):
            return text, labels
        if images is None:
            images = torch.arange(len(input_ids), device=input_ids.device)
        others = _rows_without_image(len(input_ids), images)
        patches = self.encode_images(map_pixels(pixel_values, lambda value: value[images])).to(text.dtype)
        blank = text.new_zeros(len(others), *patches.shape[1:])
        fused = torch.cat([torch.cat([patches, text[images]], 1), torch.cat([text[others], blank], 1)])
        if labels is None:
            return fused, None
        ignore = labels.new_full((len(labels), patches.shape[1]), IGNORE_INDEX)
        with_image = torch.cat([ignore[: len(images)], labels[images]], 1)
        return fused, torch.cat([with_image, torch.cat([labels[others], ignore[len(images) :]], 1)])

    def _loss(self, hidden: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Cross-entropy of the next token over labelled positions; only their logits are ever formed."""
        targets = labels[:, 1:]
        labelled = targets != IGNORE_INDEX
        chosen = hidden[:, :-1][labelled]
        if len(chosen) == 0:
            # Nothing to learn: zeros that are still connected to the parameters, so that every rank synchronises.
            nothing = hidden.float().sum() * 0.0
            return nothing.expand(len(labels)) if reduction == "rows" else nothing
        # The function is not on autocast's list; with options it works in chunks and never holds all logits at once.
        device = chosen.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else chosen.dtype
        weight, kind = self.llm_backbone.llm.lm_head.weight.to(dtype), "none" if reduction == "rows" else reduction
        loss = F.linear_cross_entropy(
            chosen.to(dtype), weight, targets[labelled], reduction=kind, options=_LOSS_OPTIONS
        ).float()
        return loss if reduction != "rows" else loss.new_zeros(len(labels)).index_add(0, labelled.nonzero()[:, 0], loss)


# Labels whose logits are held at once. torch's own choice shrinks with the width, to 4 at width 256, which takes nine
# times as long there; 256 rows of logits over 50,280 tokens take 51 MB in fp32.
LOSS_CHUNK = 256
_LOSS_OPTIONS = nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_CHUNK)


def _rows_without_image(rows: int, images: Tensor) -> Tensor:
    """Return the rows of a batch that are not among those with an image (n,), in order; int64."""
    is_text = torch.ones(rows, dtype=torch.bool, device=images.device)
    is_text[images] = False
    return is_text.nonzero().squeeze(1)


def check_stage(stage: str) -> None:
    """Raise a UserError where the stage of training is unknown."""
    check_known(stage, STAGES, "the stage")
