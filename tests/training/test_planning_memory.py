"""Planned bytes against those of the tensors that real steps of the small model hold."""

import copy
import importlib
import weakref
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from scratch import scratch_vlm
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cobra.conf import ModelConfig
from cobra.models.load import cast
from cobra.models.mamba.ops import use_op
from cobra.training.config import LoraConfig, PretrainConfig
from cobra.training.lora import apply_lora, is_adapter
from cobra.training.optimizer import build_optimizer
from cobra.training.planning import recomputation
from cobra.training.planning.activations import Pass, measure_pass
from cobra.training.planning.memory import Sharding, largest_rows, resume_state_bytes
from cobra.training.planning.memory import count_memory as count_measured
from cobra.training.planning.meta_model import build_meta_model
from cobra.training.planning.recomputation import choose_policy, policy_for_run, recomputing
from cobra.training.sharding import RESHARD, group_size, shard
from cobra.util.distributed import World

ROWS, TEXT, PATCHES = 2, 90, 9
ALONE = Sharding(world_size=1, shards=1, freed=False, accumulation=2)


@pytest.fixture(autouse=True)
def torch_operations():
    """What is planned for a CPU is what PyTorch's operations hold; numba's hold less."""
    with use_op("torch"):
        yield


def make_pass(checkpointing, element=4, kernels=False) -> Pass:
    return Pass(ROWS, PATCHES, TEXT, element, kernels, checkpointing)


def measured(vlm, size):
    return measure_pass(copy.deepcopy(vlm).to("meta"), size)


def count_activations(vlm, size):
    return measured(vlm, size).activations(vlm.llm_backbone.llm.lm_head, size.rows)


def count_memory(vlm, sharding, size, on_cuda, **options):
    return count_measured(vlm, sharding, measured(vlm, size), on_cuda, **options)


def make_model(stage="finetune", checkpointing=False, half=False, rank=0):
    """The small model as the strategy sets it up; `half`: as with mixed precision on CUDA."""
    vlm = scratch_vlm()
    vlm.altered_module_keys.clear()
    vlm.freeze_backbones(stage)
    if rank:
        apply_lora(vlm, LoraConfig(rank=rank))
    for key, module in vlm.named_children():
        cast(module, torch.bfloat16 if half and key not in vlm.checkpoint_modules else torch.float32)
    for name, parameter in vlm.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()
    vlm.train()
    vlm.llm_backbone.llm.gradient_checkpointing = checkpointing
    return vlm


def forward(vlm):
    generator = torch.Generator().manual_seed(0)
    pixels = {name: torch.randn(ROWS, 3, 48, 48, generator=generator) for name in ("dino", "siglip")}
    ids = torch.randint(2, 700, (ROWS, TEXT), generator=generator)
    return vlm(input_ids=ids, labels=ids, pixel_values=pixels, loss_reduction="sum", return_logits=False).loss


def saved_bytes(vlm, half=False) -> int:
    """Bytes that autograd keeps for the backward pass, without the parameters themselves."""
    parameters = {value.untyped_storage().data_ptr() for value in vlm.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            # The tensor is held, so that no other takes its address.
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    mixed = torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False)
    with saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        forward(vlm)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("stage", "rank"), [("align", 0), ("finetune", 0), ("full-finetune", 0), ("finetune", 4)])
def test_activations_are_those_that_autograd_saves(stage, rank, checkpointing, half):
    vlm = make_model(stage, checkpointing, half, rank)
    planned = count_activations(vlm, make_pass(checkpointing, 2 if half else 4))
    assert planned.kept + planned.copies == pytest.approx(saved_bytes(vlm, half), rel=0.002)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_the_scan_and_the_first_product_are_kept_beside_what_is_always_kept(half):
    vlm = make_model("finetune", True, half)
    size = make_pass(True, 2 if half else 4, kernels=True)
    least, middle, most = (count_activations(vlm, recomputing(size, policy)) for policy in ("all", "scan", "none"))
    config, positions = vlm.llm_backbone.llm.config, ROWS * (PATCHES + TEXT)
    # Both halves of the product and y in the dtype of products, and the scan's last state.
    tensor, last = positions * config.d_inner * size.element, ROWS * config.d_inner * config.d_state * 4
    assert middle.kept - least.kept == pytest.approx(config.n_layer * (3 * tensor + last), rel=0.04)
    assert least.kept < middle.kept < most.kept and middle.block < least.block


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("rank", [0, 4])
def test_activations_with_the_kernels_are_what_these_save(monkeypatch, rank, checkpointing, half):
    jit = pytest.importorskip("triton.runtime.jit")
    monkeypatch.setattr(jit.JITFunction, "run", lambda *args, **kwargs: None)
    vlm = make_model("finetune", checkpointing, half, rank)
    planned = count_activations(vlm, make_pass(checkpointing, 2 if half else 4, kernels=True))
    with use_op(importlib.import_module("cobra.models.mamba.ops.triton_ops")):
        assert planned.kept + planned.copies == pytest.approx(saved_bytes(vlm, half), rel=0.01)


def test_the_policy_that_recomputes_least_is_chosen_of_those_that_fit():
    assert choose_policy(True, {"all", "scan", "none"}.__contains__) == "scan"
    assert choose_policy(True, {"all", "none"}.__contains__) == choose_policy(True, set().__contains__) == "all"
    assert choose_policy(False, {"all", "scan"}.__contains__) == "none"


@pytest.mark.parametrize(
    ("memory", "recomputes", "ops", "policy"),
    [
        (2**40, True, "cobra.models.mamba.ops.triton_ops", "scan"),
        (2**20, True, "cobra.models.mamba.ops.triton_ops", "all"),
        (2**40, True, "cobra.models.mamba.ops.torch_ops", "all"),
        (2**40, False, "cobra.models.mamba.ops.triton_ops", "all"),
    ],
)
def test_a_run_recomputes_what_its_smallest_gpu_has_no_memory_for(monkeypatch, memory, recomputes, ops, policy):
    monkeypatch.setattr(recomputation, "_smallest_memory", lambda world: memory)
    monkeypatch.setattr(recomputation, "ops_for", lambda device: SimpleNamespace(__name__=ops))
    config = PretrainConfig(model=ModelConfig.get_choice_class("cobra+3b")(enable_gradient_checkpointing=recomputes))
    vlm = make_model("finetune", True).to("meta")
    assert policy_for_run(config, World(0, 1, torch.device("cuda")), (PATCHES, TEXT), lambda: vlm) == policy


class Held(TorchDispatchMode):
    """The most bytes of tensors that were alive after any operation."""

    def __init__(self, tensors, resized=()):
        """Begin with some tensors; `resized` are such that FSDP empties and refills in place."""
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0
        self.resized = [tensor.untyped_storage() for tensor in resized]
        self.apart = {storage._cdata for storage in self.resized}
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes and storage._cdata not in self.apart:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and not isinstance(value, DTensor):
                self.add(value)
        self.peak = max(self.peak, self.now + sum(storage.nbytes() for storage in self.resized))
        return result


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("stage", ["align", "finetune", "full-finetune"])
def test_states_are_exact_and_the_total_is_the_peak_of_a_step(stage, checkpointing):
    vlm = make_model(stage, checkpointing)
    optimizer = build_optimizer(vlm, 1e-3, 0.0)
    forward(vlm).backward()
    gradients = sum(value.grad.nbytes for value in vlm.parameters() if value.grad is not None)
    optimizer.step()
    optimizer.zero_grad()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]

    planned = count_memory(vlm, ALONE, make_pass(checkpointing), on_cuda=False)
    assert planned.parameters == sum(value.nbytes for value in vlm.parameters())
    assert planned.optimizer == sum(value.nbytes for value in moments)
    assert planned.gradients == gradients

    with Held([*vlm.parameters(), *moments]) as held:
        # Two passes: at the second one all gradients are there.
        forward(vlm).backward()
        forward(vlm).backward()
        optimizer.step()
    assert planned.total == pytest.approx(held.peak, rel=0.02)


@pytest.fixture
def four_processes():
    """A world of four, of which the others exist in name only: sizes are right and numbers are not."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield World(0, 4, torch.device("cpu"))
    torch.distributed.destroy_process_group()


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fsdp_parameters(vlm):
    groups = [module._get_fsdp_state()._fsdp_param_group for module in vlm.modules() if isinstance(module, FSDPModule)]
    return [parameter for group in groups if group is not None for parameter in group.fsdp_params]


@pytest.mark.parametrize(
    ("strategy", "accumulation"),
    [("fsdp-full-shard", 1), ("fsdp-full-shard", 2), ("fsdp-shard-grad-op", 2), ("ddp", 1)],
)
def test_states_of_a_sharded_model_are_those_of_its_processes(four_processes, strategy, accumulation):
    vlm = make_model(checkpointing=True)
    size = group_size(strategy, 4, None)
    planned = count_memory(vlm, Sharding(4, size, RESHARD[strategy], accumulation), make_pass(True), on_cuda=False)
    shard(vlm, strategy, four_processes, None)
    optimizer = build_optimizer(vlm, 1e-3, 0.0)

    def step():
        gradients = 0
        for number in range(accumulation):
            vlm.set_requires_gradient_sync(number == accumulation - 1)
            forward(vlm).backward()
            if number == 0 and accumulation > 1:
                found = [parameter._unsharded_param.grad for parameter in fsdp_parameters(vlm)]
                gradients = sum(gradient.nbytes for gradient in found if gradient is not None)
        gradients = gradients or sum(local(value.grad).nbytes for value in vlm.parameters() if value.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        return gradients

    # Rows of a matrix that do not divide evenly are filled up.
    assert step() == pytest.approx(planned.gradients, rel=0.01)
    moments = [local(state[name]) for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert sum(value.nbytes for value in moments) == pytest.approx(planned.optimizer, rel=0.01)
    held = [local(value).detach() for value in vlm.parameters()]
    assert sum(value.nbytes for value in held) == pytest.approx(planned.parameters, rel=0.01)
    gathered = [output for parameter in fsdp_parameters(vlm) for output in parameter.all_gather_outputs]
    with Held([*held, *moments], gathered) as mode:
        step()
    # The blocks of the small model are large beside its passes, and several are planned for.
    assert mode.peak <= planned.total <= 1.25 * mode.peak


@pytest.mark.parametrize("stage", ["finetune", "full-finetune"])
def test_a_meta_model_has_the_sizes_and_dtypes_of_the_model(stage):
    config = ModelConfig.get_choice_class("cobra-tiny")()
    meta_model = build_meta_model(config, stage, LoraConfig(), mixed_precision=True)
    real = make_model(stage, half=True)

    def described(vlm):
        return {name: (value.shape, value.dtype, value.requires_grad) for name, value in vlm.named_parameters()}

    assert described(meta_model) == described(real)
    assert {value.device.type for value in meta_model.parameters()} == {"meta"}


@cache
def released(rank=0):
    return build_meta_model(ModelConfig.get_choice_class("cobra+3b")(), "finetune", LoraConfig(rank=rank))


def test_the_released_model_has_its_published_number_of_parameters():
    vlm = released()
    counts = {key: sum(value.numel() for value in part.parameters()) for key, part in vlm.named_children()}
    # 2176 x 8704, 8704 x 2560, 2560 x 2560, and biases.
    assert counts["llm_backbone"] == 2_768_345_600 and counts["projector"] == 47_789_568
    assert resume_state_bytes(vlm) == 3 * 4 * (2_768_345_600 + 47_789_568)


def full_pass(rows, checkpointing=True) -> Pass:
    return Pass(rows, 729, 2048, 2, True, checkpointing)


def test_states_are_divided_among_gpus():
    vlm, sizes = released(), {}
    for shards in (1, 2, 8):
        sizes[shards] = count_memory(vlm, Sharding(8, shards, True, 1), full_pass(1), on_cuda=True)
    for name in ("parameters", "gradients", "optimizer"):
        whole = getattr(sizes[1], name)
        assert getattr(sizes[2], name) == pytest.approx(whole / 2, abs=1)
        assert getattr(sizes[8], name) == pytest.approx(whole / 8, abs=1)
    # Between the passes of a step every GPU has all gradients.
    accumulating = count_memory(vlm, Sharding(8, 8, True, 2), full_pass(1), on_cuda=True)
    assert accumulating.gradients == sizes[1].gradients
    # What is not freed after use is there as a whole.
    kept = count_memory(vlm, Sharding(8, 8, False, 1), full_pass(1), on_cuda=True)
    # In bf16, as they are gathered.
    assert kept.gathered > sum(value.numel() * 2 for value in vlm.parameters()) > 5 * sizes[8].gathered
    assert count_memory(vlm, Sharding(8, 8, True, 1), full_pass(1), on_cuda=True, offloaded=True).optimizer == 0


def test_the_largest_pass_fits_and_the_next_one_does_not():
    vlm, sharding = released(), Sharding(8, 8, True, 1)
    limit = 70 * 2**30
    rows = largest_rows(vlm, sharding, measure_pass(vlm, full_pass(1)), 8 * 64, limit)
    assert 64 % rows == 0

    def total(rows):
        passes = Sharding(8, 8, True, 64 // rows)
        return count_memory(vlm, passes, full_pass(rows), on_cuda=True).total

    assert total(rows) <= limit < total(2 * rows)
    assert largest_rows(vlm, sharding, measure_pass(vlm, full_pass(1)), 8 * 64, 8 * 2**30) is None


def test_adapters_fit_a_card_of_24_gb_where_the_whole_model_does_not():
    alone = Sharding(1, 1, True, 1)
    assert largest_rows(released(rank=16), alone, measure_pass(released(rank=16), full_pass(1)), 128, 24 * 2**30) >= 2
    assert largest_rows(released(), alone, measure_pass(released(), full_pass(1)), 128, 24 * 2**30) is None


@pytest.mark.fault("D6")
def test_scores_are_planned_for_as_many_labels_as_the_loss_takes_at_once(monkeypatch):
    vlm, taken = make_model(), []
    function = torch.nn.functional.linear_cross_entropy

    def watched(*args, options, **kwargs):
        taken.append(options.batch_chunk_size)
        return function(*args, options=options, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "linear_cross_entropy", watched)
    forward(vlm)
    [chunk] = taken
    vocabulary, width = vlm.llm_backbone.llm.lm_head.weight.shape

    def planned(labels):
        return count_activations(vlm, Pass(1, PATCHES, labels, 4, False, False)).loss

    # In fp32 a label has its scores, up to a chunk of them, and its vector and that vector's gradient.
    assert planned(chunk) - planned(1) == 4 * (chunk - 1) * (vocabulary + 2 * width)
    assert planned(10 * chunk) - planned(chunk) == 4 * 9 * chunk * 2 * width
