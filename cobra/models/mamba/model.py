"""A language model of Mamba's kind under state-spaces' parameter names, with continuation and padding."""

import torch
from torch import Tensor, nn

from cobra.models.mamba.config import MambaConfig
from cobra.models.mamba.mixer import LayerState, Mixer, mixer_class
from cobra.models.mamba.ops import ops_for
from cobra.models.mamba.recompute import run_block
from cobra.models.mamba.state import MambaState
from cobra.util.errors import UserError
from cobra.util.torch_utils import send


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 and returned in the weight's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension (..., width)."""
        return self.add(x, None, False)[0]

    def add(self, hidden: Tensor, residual: Tensor | None, wide: bool) -> tuple[Tensor, Tensor]:
        """Add `hidden` to the stream before it, both (..., width), and normalise the last dimension of the sum.

        Returns:
            The normalised stream in the weight's dtype, and the stream; `wide` takes it to fp32 at least.
        """
        dtype = hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
        dtype = torch.promote_types(dtype, torch.float32) if wide else dtype
        return ops_for(hidden.device).add_norm(hidden, residual, self.weight, self.eps, dtype)


class MambaBlock(nn.Module):
    """Add, norm, mix: the residual stream stays in fp32 where the config says so."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.mixer = mixer_class(config)(config)
        self.norm = RMSNorm(config.d_model, config.norm_epsilon)
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None, state: LayerState | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (mixer output, residual stream), both (batch, time, d_model); see :class:`Mixer`."""
        mixer, norm = self.mixer, self.norm
        if state is not None and hidden.shape[1] == 1 and valid is None and not torch.is_grad_enabled():
            done = mixer.block_step(norm, hidden, residual, state)
            if done is not None:
                return done
        normed, stream = norm.add(hidden, residual, self.residual_in_fp32)
        return mixer(normed, state, valid), stream


class MambaBackbone(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(MambaBlock(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_epsilon)


def _check_lengths(lengths: Tensor, inputs: Tensor) -> None:
    """Raise a UserError where lengths of rows (batch, time, ...) do not fit; another device is not waited for."""
    batch, steps = inputs.shape[:2]
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise UserError(f"lengths are {tuple(lengths.shape)} {lengths.dtype}: expected ({batch},) of whole numbers")
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps:
        raise UserError(f"lengths lie between {int(lengths.min())} and {int(lengths.max())}, but rows have {steps}")


class MambaLM(nn.Module):
    """A Mamba language model with its head tied to the embedding.

    Attributes:
        gradient_checkpointing: Recompute blocks in the backward pass of training.
        recompute: How much of them, one of :data:`cobra.models.mamba.recompute.POLICIES`.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = MambaBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.recompute = "all"
        self.lm_head.weight = self.backbone.embedding.weight
        nn.init.normal_(self.lm_head.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Mixer):
                module.initialise(config.n_layer)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return embeddings (batch, time, d_model) of token ids (batch, time)."""
        return self.backbone.embedding(input_ids)

    def forward(self, inputs_embeds: Tensor, state: MambaState | None = None, lengths: Tensor | None = None) -> Tensor:
        """Run the blocks and the final norm.

        Args:
            inputs_embeds: (batch, time, d_model).
            state: The past that the rows go on from; updated in place. None starts from nothing and keeps nothing.
            lengths: Tokens of each row (batch,) int64 when rows are padded on the right, best on the CPU: there they
                are checked without waiting for a GPU. None: no padding. Whatever the padding holds, NaN included,
                reaches neither the outputs of tokens nor the state.

        Returns:
            Final hidden states (batch, time, d_model), to be given to :meth:`logits`; of no use at padding.

        Raises:
            UserError: The state is not one of this model's, or not of as many rows; or `lengths` do not fit.
        """
        if lengths is not None:
            _check_lengths(lengths, inputs_embeds)
        if state is not None:
            state.check(self.config, len(inputs_embeds))
        hidden, residual, valid = inputs_embeds, None, None
        if lengths is not None:
            # Lengths on the CPU are sent without waiting for a GPU.
            valid = torch.arange(hidden.shape[1], device=hidden.device) < send(lengths, hidden.device).unsqueeze(1)
            hidden = hidden.masked_fill(~valid.unsqueeze(-1), 0.0)
        recomputes = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        policy = self.recompute if recomputes else "none"
        for index, block in enumerate(self.backbone.layers):
            layer_state = None if state is None else state.layer(index)
            hidden, residual = run_block(block, policy, hidden, residual, layer_state, valid)
        return self.backbone.norm_f.add(hidden, residual, False)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores over the padded vocabulary (..., padded_vocab_size), in fp32."""
        return self.lm_head(hidden).float()
