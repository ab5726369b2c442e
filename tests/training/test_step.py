"""One optimiser step: what it averages over, what it changes, and what it must leave alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch import scratch_vlm
from torch.utils._python_dispatch import TorchDispatchMode

from cobra.models.load import cast
from cobra.training.batches import CollateOrPass, ErrorsAsValues, count_targets, grouped
from cobra.training.config import Hyperparameters
from cobra.training.optimizer import decayed_names
from cobra.training.strategy import TrainStrategy
from cobra.util.data_utils import IGNORE_INDEX, PaddedCollatorForLanguageModeling
from cobra.util.distributed import World
from cobra.util.errors import UserError

CPU = World(0, 1, torch.device("cpu"))
RESOLUTION = (3, 48, 48)


def make_strategy(stage="finetune", vlm=None, **options):
    vlm = vlm or scratch_vlm()
    vlm.freeze_backbones(stage)
    values = {
        "epochs": 1,
        "max_steps": None,
        "global_batch_size": 4,
        "per_device_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "linear-warmup+cosine-decay",
        "warmup_ratio": 0.0,
    }
    options = {"enable_gradient_checkpointing": False} | options
    hyperparameters = Hyperparameters(**{name: options.pop(name, value) for name, value in values.items()})
    strategy = TrainStrategy(vlm, CPU, hyperparameters, **options)
    strategy.run_setup()
    return strategy


def make_row(index, length, image=True, labelled=None):
    """A row whose last `labelled` tokens are learned; by default all but the first three."""
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(2, 700, (length,), generator=generator)
    labels = ids.clone()
    labels[: length - labelled if labelled is not None else 3] = IGNORE_INDEX
    pixels = torch.randn(*RESOLUTION, generator=generator)
    return {
        "pixel_values": {"dino": pixels, "siglip": pixels.flip(1)} if image else None,
        "input_ids": ids,
        "labels": labels,
    }


def collate(*rows):
    return PaddedCollatorForLanguageModeling(512, 1, RESOLUTION)(rows)


ROWS = [make_row(0, 9), make_row(1, 14, image=False), make_row(2, 5), make_row(3, 30)]


def snapshot(vlm):
    return {name: parameter.detach().clone() for name, parameter in vlm.named_parameters()}


def assert_unchanged(vlm, before):
    for name, parameter in vlm.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_loss_is_the_mean_over_all_labelled_tokens_of_the_global_batch():
    strategy = make_strategy()
    batches = [collate(*ROWS[:2]), collate(*ROWS[2:])]
    with torch.no_grad():
        parts = [strategy.vlm(**batch, loss_reduction="sum").loss.item() for batch in batches]
    result = strategy.train_step(batches, 1e-3)
    # Three labels short in every row, and the first label of a text row has nothing to be predicted from.
    assert result.tokens == sum(len(row["input_ids"]) - 3 for row in ROWS)
    assert result.loss == pytest.approx(sum(parts) / result.tokens, rel=1e-5)


@pytest.mark.parametrize("split", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_does_not_depend_on_how_rows_are_spread(split, checkpointing):
    """Cobra averages the averages of its forward passes, and so gives tokens of short answers more weight."""
    whole, parts = make_strategy(), make_strategy(enable_gradient_checkpointing=checkpointing)
    expected = whole.train_step([collate(*ROWS)], 1e-2)
    rows = iter(ROWS)
    found = parts.train_step([collate(*(next(rows) for _ in range(size))) for size in split], 1e-2)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert found.tokens == expected.tokens
    gradients = {name: parameter for name, parameter in whole.vlm.named_parameters()}
    for name, parameter in parts.vlm.named_parameters():
        # AdamW's first step is the sign of the gradient times the rate: where that is near zero it may differ.
        difference = (parameter - gradients[name]).abs()
        assert (difference > 1e-4).float().mean() < 0.02, name


UNLABELLED = [make_row(0, 9, labelled=0), make_row(1, 14, image=False, labelled=0)]


@pytest.mark.fault("F4")
@pytest.mark.parametrize("rows", [UNLABELLED, UNLABELLED[:1], UNLABELLED[1:]], ids=["mixed", "image", "text"])
def test_a_batch_without_a_labelled_token_is_a_step_of_zero(rows):
    """Cobra's loss is NaN then, and so is its model from there on."""
    strategy = make_strategy(weight_decay=0.5)
    before = snapshot(strategy.vlm)
    result = strategy.train_step([collate(*rows)], 1e-2)
    assert (result.loss, result.grad_norm, result.tokens) == (0.0, 0.0, 0)
    assert_unchanged(strategy.vlm, before)
    assert strategy.global_step == 1


def test_a_pass_without_a_labelled_token_takes_nothing_from_the_others():
    alone, beside = make_strategy(), make_strategy()
    expected = alone.train_step([collate(ROWS[0])], 1e-2)
    found = beside.train_step([collate(*UNLABELLED), collate(ROWS[0])], 1e-2)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert found.tokens == expected.tokens


def poisoned_batch():
    batch = collate(ROWS[0])
    batch["pixel_values"]["dino"][0, 0, 0, 0] = float("inf")
    return batch


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was():
    strategy = make_strategy(weight_decay=0.5)
    before = snapshot(strategy.vlm)
    result = strategy.train_step([poisoned_batch()], 1e-2)
    assert result.skipped and result.loss != result.loss
    assert_unchanged(strategy.vlm, before)
    assert (strategy.global_step, strategy.skipped_steps, strategy.tokens) == (1, 1, 0)
    assert not strategy.optimizer.state and strategy.is_finite()
    assert not strategy.train_step([collate(*ROWS)], 1e-2).skipped


def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was():
    strategy = make_strategy(weight_decay=0.5)
    before = snapshot(strategy.vlm)
    strategy.vlm.projector.projector[0].bias.register_hook(lambda gradient: gradient * float("inf"))
    result = strategy.train_step([collate(*ROWS)], 1e-2)
    assert result.skipped and result.loss == result.loss and not result.grad_norm < float("inf")
    assert_unchanged(strategy.vlm, before)


def test_weight_decay_is_by_name():
    strategy = make_strategy("full-finetune", weight_decay=0.5)
    before = snapshot(strategy.vlm)
    # No gradient, so that decay is all that moves.
    for parameter in strategy.vlm.parameters():
        parameter.register_hook(torch.zeros_like)
    strategy.train_step([collate(ROWS[0])], 0.1)
    seen, decayed = set(), decayed_names(strategy.vlm)
    for name, parameter in strategy.vlm.named_parameters():
        if parameter.grad is None and torch.equal(parameter, before[name]):
            # Not reached by the pass: the last block, whose output is not used, and the pooling head.
            assert "featurizer" in name or name not in decayed, name
            continue
        seen.add(name.rpartition(".")[2])
        torch.testing.assert_close(
            parameter.detach(), before[name] * 0.95, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert seen == {"weight"}


FROZEN = {"align": ("vision_backbone", "llm_backbone"), "finetune": ("vision_backbone",), "full-finetune": ()}


@pytest.mark.parametrize("stage", FROZEN)
def test_each_stage_trains_its_modules_and_no_other(stage):
    strategy = make_strategy(stage)
    before = snapshot(strategy.vlm)
    gradients = {}

    def keep(optimizer, arguments, options):
        gradients.update({name: parameter.grad for name, parameter in strategy.vlm.named_parameters()})

    strategy.optimizer.register_step_pre_hook(keep)
    strategy.train_step([collate(*ROWS)], 1e-2)
    for key, module in strategy.vlm.named_children():
        frozen = key in FROZEN[stage]
        names = [f"{key}.{name}" for name, _ in module.named_parameters()]
        assert any(gradients[name] is not None for name in names) != frozen, key
        changed = any(
            not torch.equal(parameter, before[f"{key}.{name}"]) for name, parameter in module.named_parameters()
        )
        assert changed != frozen, key
    # Frozen towers stay in evaluation: dropout in them would be noise that nothing learns from.
    assert strategy.vlm.vision_backbone.training == (stage == "full-finetune")
    assert all(module.training == (stage == "full-finetune") for module in strategy.vlm.vision_backbone.modules())
    assert strategy.vlm.projector.training
    assert all(parameter.grad is None for parameter in strategy.vlm.parameters())


def test_the_rate_is_the_steps_own():
    strategy = make_strategy()
    before = snapshot(strategy.vlm)
    strategy.train_step([collate(*ROWS)], 0.0)
    assert_unchanged(strategy.vlm, before)
    strategy.train_step([collate(*ROWS)], 1e-3)
    moved = max((parameter - before[name]).abs().max().item() for name, parameter in strategy.vlm.named_parameters())
    assert moved == pytest.approx(1e-3, rel=0.2)
    assert {group["lr"] for group in strategy.optimizer.param_groups} == {1e-3}
    assert strategy.global_step == 2


def test_the_gradient_is_clipped():
    strategy = make_strategy(max_grad_norm=1e-3)
    norms = []
    strategy.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.nn.utils.get_total_norm([p.grad for p in strategy.vlm.parameters() if p.grad is not None]).item()
        )
    )
    result = strategy.train_step([collate(*ROWS)], 1e-3)
    assert result.grad_norm > 1e-2
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_steps_learn():
    strategy = make_strategy()
    losses = [strategy.train_step([collate(*ROWS)], 3e-3).loss for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5


def test_everything_is_fp32_on_a_cpu_also_after_half_precision():
    vlm = scratch_vlm()
    cast(vlm, torch.bfloat16)
    strategy = make_strategy(vlm=vlm, enable_mixed_precision_training=True)
    assert {parameter.dtype for parameter in strategy.vlm.parameters()} == {torch.float32}
    assert not strategy.mixed_precision


def test_count_targets_by_hand():
    labels = torch.tensor([[5, 6, -100], [5, -100, 7], [-100, -100, -100]])
    assert count_targets(labels, torch.tensor([], dtype=torch.long)).item() == 2
    # Row 0's first label is predicted from the last patch of its image.
    assert count_targets(labels, torch.tensor([0])).item() == 3
    assert count_targets(labels, torch.tensor([0, 2])).item() == 3
    assert count_targets(labels, torch.tensor([0, 1, 2])).item() == 4


@pytest.fixture(scope="module")
def model():
    return scratch_vlm()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_loss_sums_over_exactly_the_counted_targets(model, data):
    rows = []
    for index in range(data.draw(st.integers(1, 3))):
        mask = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
        row = make_row(index, len(mask), image=data.draw(st.booleans()), labelled=len(mask))
        row["labels"][~torch.tensor(mask)] = IGNORE_INDEX
        rows.append(row)
    batch = collate(*rows)
    count = count_targets(batch["labels"], batch["multimodal_indices"]).item()
    with torch.no_grad():
        total = model(**batch, loss_reduction="sum").loss.item()
        mean = model(**batch, loss_reduction="mean").loss.item()
        of_rows = model(**batch, loss_reduction="rows").loss.tolist()
        logits = model(**{**batch, "labels": None}).logits
    assert total == pytest.approx(mean * count, rel=1e-4, abs=1e-6)
    # By hand, row by row: rows with an image come first, and their text follows the patches.
    images = batch["multimodal_indices"].tolist()
    order = images + [index for index in range(len(rows)) if index not in images]
    patches = logits.shape[1] - batch["input_ids"].shape[1]
    expected, counted = [0.0] * len(rows), 0
    for place, index in enumerate(order):
        start = patches if index in images else 0
        for position, label in enumerate(rows[index]["labels"].tolist()):
            if label != IGNORE_INDEX and start + position > 0:
                expected[index] -= logits[place, start + position - 1].log_softmax(-1)[label].item()
                counted += 1
    assert counted == count
    assert of_rows == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert total == pytest.approx(sum(expected), rel=1e-4, abs=1e-6)


class _BadRow(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise UserError("row 1 names an image that cannot be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_the_same_error_with_and_without_workers(workers):
    """Raised in a DataLoader's worker, the error would come out as a traceback in a string."""
    loader = torch.utils.data.DataLoader(
        ErrorsAsValues(_BadRow()), batch_size=2, collate_fn=CollateOrPass(list), num_workers=workers
    )
    [error] = grouped(loader, 1)
    assert isinstance(error, UserError) and str(error) == "row 1 names an image that cannot be read"


@pytest.mark.fault("D5")
@pytest.mark.parametrize(("architecture", "patches"), [("no-align+fused-gelu-mlp", 9), ("no-align+fused-ldpnet", 196)])
def test_positions_of_a_step_are_those_that_the_language_model_reads(architecture, patches):
    strategy = make_strategy(vlm=scratch_vlm(arch_specifier=architecture))
    result = strategy.train_step([collate(*ROWS)], 1e-3)
    assert (result.images, result.positions) == (3, 9 + 14 + 5 + 30 + 3 * patches)


def test_a_step_reads_its_numbers_at_once():
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            Reads.count += operation is torch.ops.aten._local_scalar_dense.default
            return operation(*args, **(kwargs or {}))

    strategy = make_strategy()
    with Reads():
        strategy.train_step([collate(*ROWS)], 1e-3)
    # `tolist` copies at once; AdamW's counts of steps lie on the CPU.
    assert Reads.count == 0
