"""Policies of recomputation: the same numbers, and less that is kept."""

import pytest
import torch

from cobra.models.mamba import MambaConfig, MambaLM
from cobra.models.mamba.ops import use_op
from cobra.models.mamba.recompute import POLICIES, Keeper


def trained(policy: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Return the output, the gradients, and how often blocks were begun."""
    torch.manual_seed(0)
    llm = MambaLM(MambaConfig(d_model=16, n_layer=3, vocab_size=32)).train()
    llm.gradient_checkpointing, llm.recompute = policy != "none", policy
    calls = []
    for block in llm.backbone.layers:
        block.norm.add = counted(block.norm.add, calls)
    out = llm(torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1)))
    out.square().sum().backward()
    return out, {name: value.grad for name, value in llm.named_parameters() if value.grad is not None}, len(calls)


def counted(function, calls):
    def run(*args):
        calls.append(args)
        return function(*args)

    return run


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_bits(policy):
    with use_op("torch"):
        (expected, gradients, once), (out, others, times) = trained("none"), trained(policy)
    assert torch.equal(out, expected) and others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(others[name], gradient), name
    assert times == (once if policy == "none" else 2 * once)


def test_the_first_product_and_the_scan_are_kept_in_both_passes():
    product, keeper = torch.ops.aten.mm.default, Keeper()
    for again in (False, True):
        kept = [keeper.keeps(operation, again) for operation in (product, torch.ops.aten.add.Tensor, product, product)]
        assert kept == [True, False, False, False]
