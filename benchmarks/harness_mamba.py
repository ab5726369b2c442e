"""The sides of benchmarks/mamba_ops.py: this project's operations and models, transformers' and mambapy's."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobra.models.mamba import MambaConfig, MambaLM
from cobra.models.mamba.ops import torch_ops, use_op

PEERS = ("transformers", "mambapy")


def own_ops() -> dict[str, ModuleType]:
    """Return this project's operations that are installed, by name."""
    if find_spec("numba") is None:
        return {"torch": torch_ops}
    from cobra.models.mamba.ops import numba_ops

    return {"torch": torch_ops, "numba": numba_ops}


def peers() -> list[str]:
    """Return the peers that are installed."""
    return [name for name in PEERS if find_spec(name)]


def scan_inputs(steps: int, width: int, dt_scale: float = 1.0, a_scale: float = 1.0) -> dict[str, Tensor]:
    """Draw inputs of one row, with the step sizes and decay rates of a fresh model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": normal(1, steps, width),
        "dt": normal(1, steps, width) * dt_scale,
        "A_log": torch.log(torch.arange(1.0, 17.0) * a_scale).repeat(width, 1),
        "B": normal(1, steps, 16),
        "C": normal(1, steps, 16),
        "D": normal(width),
        "z": normal(1, steps, width),
        "dt_bias": normal(width) - 4,
    }


def scan_with(side: str, inputs: dict[str, Tensor]) -> Tensor:
    """Return y of a side's scan, with softplus, skip and gate."""
    if side in own_ops():
        return own_ops()[side].selective_scan(**inputs, state=None, valid=None)[0]
    if side == "transformers":
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan

        u, dt, B, C, z = (inputs[name].transpose(1, 2) for name in ("u", "dt", "B", "C", "z"))
        A, bias = -inputs["A_log"].exp(), inputs["dt_bias"]
        y = mamba_selective_scan(u, dt, A, B, C, inputs["D"], z, delta_bias=bias, delta_softplus=True)
        return y.transpose(1, 2)
    from mambapy.mamba import MambaBlock

    delta = F.softplus(inputs["dt"] + inputs["dt_bias"])
    arguments = (inputs[name] for name in ("B", "C", "D"))
    return MambaBlock.selective_scan(None, inputs["u"], delta, -inputs["A_log"].exp(), *arguments) * F.silu(inputs["z"])


def exact_scan(inputs: dict[str, Tensor]) -> Tensor:
    """Return y by the recurrence, one position after the other, in float64."""
    names = ("u", "dt", "A_log", "B", "C", "D", "z", "dt_bias")
    u, dt, A_log, B, C, D, z, bias = (inputs[name].double() for name in names)
    A = -A_log.exp()
    delta, h, ys = F.softplus(dt + bias), torch.zeros(1, *A.shape, dtype=torch.double), []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(ys, 1) * F.silu(z)


def build_own(width: int, layers: int, vocabulary: int) -> MambaLM:
    """Build a model of random weights, the same for the same sizes."""
    torch.manual_seed(0)
    return MambaLM(MambaConfig(width, layers, vocabulary)).eval()


def build_transformers(own: MambaLM, **settings: Any) -> Any:
    """Build transformers' model on the same weights, with further settings of its own."""
    from transformers import MambaConfig as PeerConfig
    from transformers import MambaForCausalLM

    config = PeerConfig(
        hidden_size=own.config.d_model,
        num_hidden_layers=own.config.n_layer,
        vocab_size=own.config.padded_vocab_size,
        tie_word_embeddings=True,
        **settings,
    )
    peer = MambaForCausalLM(config).eval()
    weights = own.state_dict().items()
    peer.load_state_dict({name.replace("backbone.embedding", "backbone.embeddings"): value for name, value in weights})
    return peer


def build_mambapy(own: MambaLM) -> nn.Module:
    """Build mambapy's blocks on the same weights; it has no head, so that the own one is given to it."""
    from mambapy.mamba import Mamba
    from mambapy.mamba import MambaConfig as PeerConfig

    peer = Mamba(PeerConfig(own.config.d_model, own.config.n_layer)).eval()
    peer.load_state_dict(own.backbone.layers.state_dict(prefix="layers."))
    return peer


def hidden_of(own: MambaLM, sides: Sequence[str] = ()) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the way of some sides, or of all, from embeddings to the final hidden states."""

    def by(name: str) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with use_op(name):
                return own(x)

        return run

    found = {name: by(name) for name in own_ops()}
    if "transformers" in (sides or peers()):
        backbone = build_transformers(own).backbone
        found["transformers"] = lambda x: backbone(inputs_embeds=x, use_cache=False).last_hidden_state
    if "mambapy" in (sides or peers()):
        blocks = build_mambapy(own)
        found["mambapy"] = lambda x: own.backbone.norm_f(blocks(x))
    return found
