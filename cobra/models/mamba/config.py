"""Sizes of a Mamba language model, read from the formats in which they are published."""

import math
from dataclasses import dataclass, field
from typing import Any

from cobra.util.errors import UserError, check_known

MIXERS: dict[str, type] = {}
"""Kinds of mixers by name; :func:`cobra.models.mamba.mixer.register_mixer` adds to them."""


@dataclass(frozen=True)
class MambaConfig:
    """Architecture of a Mamba language model; the defaults are those of Mamba-1 (Gu and Dao, arXiv 2312.00752)."""

    d_model: int
    n_layer: int
    vocab_size: int
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    """Rank of the step-size projection; None is ceil(d_model / 16)."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_init_floor: float = 1e-4
    x_proj_gain: float = 1.0
    """Multiplies the initial weights of x_proj. At 1 the state's part of the output starts near 1e-3 of what passes by;
    a tiny model trained from scratch on short captions learns to look three times sooner at 8."""
    conv_bias: bool = True
    proj_bias: bool = False
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: int = 8
    mixer: str = "Mamba1"
    """Kind of the mixer, a key of :data:`MIXERS`; `ssm_cfg.layer` in the file."""
    mixer_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Keys of `ssm_cfg` beyond those above, as the file has them, for mixers with sizes of their own."""

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (name == "dt_rank" and value is None):
                raise UserError(f"{name} is {value!r}, expected a whole number above 0")
        for name in _MEASURES:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise UserError(f"{name} is {value!r}, expected a number above 0")

    @property
    def d_inner(self) -> int:
        """Width of the mixer."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """Rank of the step-size projection."""
        return self.dt_rank if self.dt_rank is not None else math.ceil(self.d_model / 16)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: the vocabulary rounded up to a multiple of `pad_vocab_size_multiple`."""
        return math.ceil(self.vocab_size / self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "the config") -> "MambaConfig":
        """Read a `config.json` of state-spaces (`d_model`, `n_layer`, `ssm_cfg`) or of transformers (`hidden_size`).

        Args:
            values: The parsed JSON object.
            where: Source of the object, for errors.

        Raises:
            UserError: A key or size is missing or impossible, or the kind of mixer is unknown.
        """
        try:
            return cls._parse(values)
        except KeyError as error:
            raise UserError(f"{where} is not a Mamba config: it has no {error}") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where} is not a Mamba config: {error}") from error

    @classmethod
    def _parse(cls, values: dict[str, Any]) -> "MambaConfig":
        ssm = dict(values.get("ssm_cfg") or {})
        mixer = ssm.pop("layer", "Mamba1")
        check_known(str(mixer), MIXERS, "its mixer")
        if values.get("attn_layer_idx"):
            raise UserError("it describes a hybrid with attention, and only models without are supported")
        if not values.get("rms_norm", True):
            raise UserError("it has layer norms, and only models with RMS norms are supported")
        if "d_model" in values and "n_layer" in values:
            sizes = {name: values[name] for name in _STATE_SPACES if name in values}
            sizes |= {name: ssm.pop(key) for name, key in _SSM.items() if key in ssm}
            sizes |= {"mixer": mixer, "mixer_options": ssm}
        elif "hidden_size" in values and "num_hidden_layers" in values:
            sizes = {name: values[key] for name, key in _TRANSFORMERS.items() if key in values}
        else:
            raise UserError(
                "expected d_model and n_layer (state-spaces) or hidden_size and num_hidden_layers (transformers), "
                f"found {', '.join(sorted(values)) or 'nothing'}"
            )
        if sizes.get("dt_rank") == "auto":
            sizes["dt_rank"] = None
        return cls(vocab_size=values["vocab_size"], **sizes)


# Keys of state-spaces' config.json that are our names; ours by those of its `ssm_cfg`, and by those of transformers.
_STATE_SPACES = ("d_model", "n_layer", "norm_epsilon", "residual_in_fp32", "pad_vocab_size_multiple")
_SSM = {name: name for name in ("d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init_floor")}
_SSM |= {"x_proj_gain": "x_proj_gain", "conv_bias": "conv_bias", "proj_bias": "bias"}
_TRANSFORMERS = {
    **{"d_model": "hidden_size", "n_layer": "num_hidden_layers", "d_state": "state_size", "d_conv": "conv_kernel"},
    **{"expand": "expand", "dt_rank": "time_step_rank", "dt_min": "time_step_min", "dt_max": "time_step_max"},
    **{"dt_init_floor": "time_step_floor", "conv_bias": "use_conv_bias", "proj_bias": "use_bias"},
    **{"norm_epsilon": "layer_norm_epsilon"},
    **{name: name for name in ("residual_in_fp32", "pad_vocab_size_multiple")},
}
_SIZES = ("d_model", "n_layer", "vocab_size", "d_state", "d_conv", "expand", "dt_rank", "pad_vocab_size_multiple")
_MEASURES = ("dt_min", "dt_max", "dt_init_floor", "x_proj_gain", "norm_epsilon")
