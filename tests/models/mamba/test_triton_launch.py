"""Launches of the Triton kernels on a GPU that is not there, and what the compiled kernels take of it."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton")

from stub_driver import TARGETS, compiled, resources, stub_gpu  # noqa: E402

from cobra.models import mamba  # noqa: E402
from cobra.models.mamba import ops as choice  # noqa: E402
from cobra.models.mamba.ops import triton_conv, triton_norm, triton_ops, triton_step, triton_sums, use_op  # noqa: E402
from cobra.models.mamba.ops.probe import probe  # noqa: E402
from cobra.util.errors import UserError  # noqa: E402

WIDTH, D_MODEL, RANK, STATES = 5120, 2560, 160, 16
KERNELS = {
    kernel.fn.__name__: kernel
    for kernel in (
        *(triton_conv.conv_forward, triton_conv.conv_backward, triton_conv.conv_step),
        *(triton_norm.norm_forward, triton_norm.norm_backward, triton_step.scan_step, triton_sums.pack_pairs),
        *(triton_sums.start_carry, triton_sums.sum_rows, triton_sums.sum_blocks, triton_sums.sum_parts),
    )
}
# Registers of a thread; those of the steps are few, so that programs enough for a whole card run at once.
MOST_REGISTERS = {"conv_forward": 72, "conv_backward": 80, "norm_forward": 64, "norm_backward": 128}
MOST_REGISTERS |= {"conv_step": 64, "scan_step": 64, "pack_pairs": 64, "start_carry": 64, "sum_rows": 64}
MOST_REGISTERS |= {"sum_blocks": 64, "sum_parts": 64}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("triton"))


@pytest.fixture(autouse=True)
def cold(monkeypatch, cache):
    """No kernel was launched before, nor compiled before this file's tests."""
    monkeypatch.setattr(triton.knobs.cache, "dir", cache)
    for kernel in KERNELS.values():
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))


def train(dtype, batch=2, steps=37):
    """Run the convolution and the norm of cobra+3b's layers forward and backward."""
    leaf = {"dtype": dtype, "requires_grad": True}
    x = torch.zeros(batch, steps, 2 * WIDTH, **leaf)[..., WIDTH:]
    window = torch.zeros(batch, WIDTH, 4)
    u = triton_ops.causal_conv(x, torch.zeros(WIDTH, 4, **leaf), torch.zeros(WIDTH, **leaf), window)
    hidden, weight = torch.zeros(batch, steps, D_MODEL, **leaf), torch.zeros(D_MODEL, **leaf)
    residual = torch.zeros(batch, steps, D_MODEL, requires_grad=True)
    normed, stream = triton_ops.add_norm(hidden, residual, weight, 1e-5, torch.float32)
    outputs = [u, normed, stream]
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    lay_out_and_add_up(dtype, batch, steps)


def lay_out_and_add_up(dtype, batch, steps):
    """Run what goes before and after the kernels of the scan, which have a test of their own."""
    reads, A_log = torch.zeros(batch, steps, RANK + 2 * STATES, dtype=dtype), torch.zeros(WIDTH, STATES)
    B, C = reads[..., RANK:].chunk(2, -1)
    triton_sums.make_pairs(B, C, torch.float32, to_backward=True)
    carry = triton_sums.make_carry(A_log, torch.zeros(batch, WIDTH, STATES), batch, torch.float32)
    triton_sums.weight_gradients(carry, torch.zeros(2, batch, WIDTH), A_log, A_log[:, 0].contiguous(), A_log[:, 0])
    triton_sums.read_gradients(torch.zeros(batch, -(-steps // 16), STATES, WIDTH), B, C)


@torch.no_grad()
def decode(dtype, batch=2):
    """Run the steps of cobra+3b's layers, with and without their projection."""
    xz, reads = torch.zeros(batch, 2 * WIDTH, dtype=dtype), torch.zeros(batch, RANK + 2 * STATES, dtype=dtype)
    (x, z), (_, B, C), wide = xz.chunk(2, -1), reads.split([RANK, STATES, STATES], -1), torch.zeros(WIDTH)
    A_log, state = torch.zeros(WIDTH, STATES), torch.zeros(batch, WIDTH, STATES)
    u = triton_ops.causal_conv_step(x, torch.zeros(WIDTH, 4, dtype=dtype), None, torch.zeros(batch, WIDTH, 4))
    triton_ops.selective_scan_step(u, x, A_log, B, C, wide, z, wide, state)
    weight = torch.zeros(WIDTH, RANK, dtype=dtype)
    triton_step.projected_scan_step(u, reads, weight, wide, A_log, wide, z, state)


def check_resources(target):
    """Check that no kernel of a target spills, nor takes more registers than it should."""
    taken = {name: [resources(one) for one in compiled(kernel, target)] for name, kernel in KERNELS.items()}
    for name, results in taken.items():
        assert results, f"{name} was not launched"
        for found in results:
            # Cards of 2018 have the same kernels; how many run at once was not looked at there.
            assert found.registers <= MOST_REGISTERS[name] or target == "sm_75", (target, name, found)
            assert found.stack == found.spills == 0, (target, name, found)
            assert found.shared == 0 or "conv" not in name, (target, name, found)
    return taken


def test_kernels_of_a_model_take_little_of_a_gpu():
    with stub_gpu("sm_90") as stub:
        train(torch.bfloat16)
        decode(torch.bfloat16)
        grids = {launch.name: launch.grid for launch in stub.launches}
        taken = check_resources("sm_90")
    assert grids == {
        **{"conv_forward": (20, 2, 2), "conv_backward": (40, 2, 2), "conv_step": (40, 2, 1)},
        **{"norm_forward": (74, 1, 1), "norm_backward": (74, 1, 1), "scan_step": (320, 2, 1)},
        # The last sum is that of the convolution.
        **{"pack_pairs": (3, 2, 1), "start_carry": (160, 2, 1), "sum_rows": (160, 1, 1), "sum_blocks": (3, 16, 2)},
        "sum_parts": (400, 1, 1),
    }
    # Steps with and without the projection, sums for the convolution and the norm.
    twice = {"scan_step": 2, "sum_parts": 2}
    assert {name: len(kernels) for name, kernels in taken.items()} == dict.fromkeys(KERNELS, 1) | twice
    # The argument that follows the tensors says how they lie: halves of wider rows.
    convolution = next(launch for launch in stub.launches if launch.name == "conv_forward")
    assert (convolution.args["steps"], convolution.args["x_row"]) == (37, 37 * 2 * WIDTH)
    assert (convolution.args["X_STEP"], convolution.args["WIDTH"]) == (2 * WIDTH, WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_every_target(target, dtype):
    with stub_gpu(target):
        train(dtype)
        decode(dtype)
        print(target, dtype, check_resources(target))


@pytest.mark.slow
def test_a_kernel_that_is_made_worse_is_found(monkeypatch):
    """Here by sixteen channels a lane, whose numbers no lane has registers for."""
    monkeypatch.setattr(triton_conv, "_BACKWARD_BLOCK", 512)
    monkeypatch.setattr(triton_conv, "_WARPS", 1)
    x, weight = torch.zeros(1, 5, 64), torch.zeros(64, 4)
    with stub_gpu("sm_90"):
        triton_conv.causal_conv_backward(x, x, weight, None, None, False)
        [kernel] = compiled(triton_conv.conv_backward, "sm_90")
        found = resources(kernel)
    assert found.registers > MOST_REGISTERS["conv_backward"] and found.stack > 0


def test_one_kernel_serves_all_batches_and_lengths(monkeypatch):
    monkeypatch.setattr(triton_step, "_PROGRAMS", 700)
    with stub_gpu("sm_90"):
        for batch, steps in ((1, 1), (1, 37), (3, 2), (2, 300)):
            train(torch.bfloat16, batch, steps)
            decode(torch.bfloat16, batch)
        counts = {name: len(compiled(kernel, "sm_90")) for name, kernel in KERNELS.items()}
        assert counts == dict.fromkeys(KERNELS, 1) | {"scan_step": 2, "sum_parts": 2}


@pytest.mark.slow
def test_on_a_machine_with_a_gpu_they_are_chosen_after_a_probe_of_all(monkeypatch):
    """The probe's tensors lie on the CPU here, as do the results, which nothing has computed."""
    monkeypatch.delenv("COBRA_MAMBA_OP", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device, verdicts = torch.device("cuda", 0), []

    def probe_here(ops, device):
        verdicts.append(probe(ops, torch.device("cpu")))

    monkeypatch.setattr(triton_ops, "probe", probe_here)
    triton_ops.failure.cache_clear()
    choice._fastest.cache_clear()
    try:
        with stub_gpu("sm_90") as stub:
            assert choice.ops_for(device).__name__ == triton_ops.__name__
    finally:
        triton_ops.failure.cache_clear()
        choice._fastest.cache_clear()
    assert {launch.name for launch in stub.launches} == {*KERNELS, "scan_forward", "scan_backward"}
    [verdict] = verdicts
    assert verdict.startswith("they compute other numbers than PyTorch's operations")


class Calls(TorchDispatchMode):
    """The operators that do something, by name, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view:
            self.names.append(operator.name())
        return operator(*args, **kwargs or {})


@torch.no_grad()
def test_a_block_is_six_launches():
    lm = mamba.MambaLM(mamba.MambaConfig(d_model=32, n_layer=1, vocab_size=8)).bfloat16().eval()
    block, state = lm.backbone.layers[0], mamba.MambaState.zeros(lm.config, 2, "cpu").layer(0)
    hidden, residual = torch.zeros(2, 1, 32, dtype=torch.bfloat16), torch.zeros(2, 1, 32)
    with stub_gpu("sm_90") as stub, use_op(triton_ops), Calls() as calls:
        block(hidden, residual, state)
    assert [launch.name for launch in stub.launches] == ["norm_forward", "conv_step", "scan_step"]
    ours, product = ["cobra::add_norm", "cobra::causal_conv_step", "cobra::projected_scan_step"], "aten::mm"
    assert [name for name in calls.names if not name.startswith(("aten::empty", "aten::promote"))] == [
        *(ours[0], product, ours[1], product, ours[2], product)
    ]


def test_a_tensor_that_is_spread_over_processes_is_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        whole = torch.zeros(2, 8)
        spread = distribute_tensor(torch.zeros(8, 4), init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match="spread over processes"):
            triton_ops.causal_conv_step(whole, spread, None, torch.zeros(2, 8, 4))
    finally:
        torch.distributed.destroy_process_group()


def test_shapes_are_known_without_running_anything():
    """What plans and compilers do: with tensors that have no memory."""
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 5, 128, device="cuda", dtype=torch.bfloat16)[..., 64:]
        weight = torch.empty(64, 4, device="cuda", dtype=torch.bfloat16)
        u = triton_ops.causal_conv(x, weight, None, None)
        normed, stream = triton_ops.add_norm(u, u.float(), weight[:, 0].contiguous(), 1e-5, torch.float32)
        assert (u.shape, u.dtype, normed.dtype, stream.dtype) == (x.shape, x.dtype, x.dtype, torch.float32)
        # On a GPU that is not there no gradient can be asked for.
        scale = torch.empty(64, requires_grad=True)
        triton_ops.add_norm(torch.empty(2, 64), None, scale, 1e-5, torch.float32)[0].sum().backward()
        assert scale.grad.shape == (64,)
