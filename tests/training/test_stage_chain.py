"""The stages one after another on one small model: each goes on from the checkpoint of the one before."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from scratch import picture
from torch.utils.data import Subset

import cobra
from cobra.models.load import build_vlm
from cobra.models.run_folder import LATEST
from cobra.models.vlms import CobraVLM
from cobra.preprocessing import get_dataset_and_collator
from cobra.preprocessing.datasets import AlignDataset
from cobra.training.config import PretrainConfig
from cobra.training.pretrain import pretrain
from cobra.training.validation import Validation
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.cli import parse
from cobra.util.distributed import World
from cobra.util.files import sha256_file

CPU = World(0, 1, torch.device("cpu"))
TOWERS, LLM, PROJECTOR = "vision_backbone", "llm_backbone", "projector"
BATCH, STEPS = 4, 3
QUESTION = "What is in the picture?"


@dataclass
class Run:
    """A finished run: its configuration and directory, and the very model that was trained."""

    config: PretrainConfig
    folder: Path
    vlm: CobraVLM

    def logged(self, name: str) -> list[float]:
        lines = map(json.loads, (self.folder / f"{self.folder.name}.jsonl").read_text().splitlines())
        return [value for line in lines for key, value in line.items() if key.endswith(f"/{name}")]

    def saved(self) -> dict:
        return torch.load(self.folder / LATEST, weights_only=True)["model"]


def make_rows(numbers: range, folder: Path) -> list[dict]:
    """Rows of uneven lengths, one of them of text only, with pictures."""
    rows = []
    for number in numbers:
        answer = " ".join(f"blot {number + place}" for place in range(1 + number % 4))
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"row-{number}", "conversations": turns})
        if number % 9 != 4:
            rows[-1]["image"] = f"{number}.png"
            picture(number).save(folder / rows[-1]["image"])
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Captions to align on, and a prepared LLaVA-CoT-100k with held-out rows."""
    root = tmp_path_factory.mktemp("data")
    align, cot = (root / "download" / name for name in ("llava-laion-cc-sbu-558k", "llava-cot-100k"))
    for folder in (align, cot):
        folder.mkdir(parents=True)
    captions = [row for row in make_rows(range(9), align) if "image" in row]
    (align / "chat.json").write_text(json.dumps(captions))
    (cot / "llava_cot_100k.json").write_text(json.dumps(make_rows(range(9, 20), cot)))
    (cot / "llava_cot_100k_holdout.json").write_text(json.dumps(make_rows(range(20, 25), cot)))
    return root


def train(data: Path, stage: str, *more: str) -> Run:
    """Run a stage of an architecture that has an align stage, on backbones that come with their own weights."""
    prefix = "align" if stage == "align" else "finetune"
    arguments = [
        *("--model.type", "cobra-tiny", "--model.arch_specifier", "fused-gelu-mlp", "--device", "cpu"),
        *("--dataset.type", "llava-cot-100k", "--dataset.dataset_root_dir", str(data), "--stage", stage),
        *("--run_root_dir", str(data / "runs"), "--eval_samples", "0", f"--model.{prefix}_max_steps", str(STEPS)),
        *(f"--model.{prefix}_global_batch_size", str(BATCH), f"--model.{prefix}_per_device_batch_size", "2", *more),
    ]
    config = parse(PretrainConfig, arguments)
    built = []
    freeze = CobraVLM.freeze_backbones

    def keep(vlm: CobraVLM, stage: str) -> None:
        built.append(vlm)
        freeze(vlm, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CobraVLM, "freeze_backbones", keep)
        folder = pretrain(config)
    [vlm] = built
    return Run(config, folder, vlm.eval())


@pytest.fixture(scope="module")
def runs(data) -> dict[str, Run]:
    """The chain: `align`, `finetune`, which finds the align run, `full-finetune`, and one more finetune."""
    chain = {stage: train(data, stage) for stage in ("align", "finetune")}
    # A large rate, so that the towers are others afterwards and not nearly the same.
    chain["full-finetune"] = train(
        data,
        "full-finetune",
        *("--pretrained_checkpoint", str(chain["finetune"].folder), "--model.finetune_learning_rate", "1e-2"),
    )
    chain["again"] = train(
        data, "finetune", *("--pretrained_checkpoint", str(chain["full-finetune"].folder), "--run_id", "again")
    )
    return chain


# Run -> the one whose checkpoint it goes on from.
FORMER = {"finetune": "align", "full-finetune": "finetune", "again": "full-finetune"}

TRAINED = {
    "align": {PROJECTOR},
    "finetune": {LLM, PROJECTOR},
    "full-finetune": {TOWERS, LLM, PROJECTOR},
    "again": {LLM, PROJECTOR},
}


def rows_of(run: Run, vlm: CobraVLM):
    """The rows of a run as it had read them, their lengths, and the collator."""
    dataset, collator = get_dataset_and_collator(
        run.config.stage,
        run.config.dataset,
        vlm.vision_backbone.image_transform,
        vlm.llm_backbone.tokenizer,
        vlm.llm_backbone.prompt_builder_fn,
        vlm.vision_backbone.default_image_resolution,
    )
    patches = (vlm.vision_backbone.num_patches,) if isinstance(dataset, AlignDataset) else ()
    return dataset, dataset.get_modality_lengths(*patches), collator


def loss_on_first_batch(run: Run, vlm: CobraVLM) -> float:
    """The evaluation loss of a model on the rows of a run's first step, in passes of another size than the run's."""
    dataset, lengths, collator = rows_of(run, vlm)
    batch = SplitModalitySampler(None, lengths, BATCH, 1, 0, run.config.seed).global_batches(0)[0]
    assert len(set(batch)) == BATCH
    rows = Subset(dataset, batch)
    return Validation(rows, collator, [lengths[row] for row in batch], 3).loss(vlm, CPU, False)


def differing(vlm: CobraVLM, other: CobraVLM, module: str) -> list[bool]:
    values, others = (getattr(model, module).state_dict() for model in (vlm, other))
    assert values.keys() == others.keys()
    return [not torch.equal(value, others[name]) for name, value in values.items()]


@pytest.fixture(scope="module")
def starts(runs) -> dict[str, CobraVLM]:
    """What each run should have started from, as it is loaded by a user."""
    fields = vars(runs["align"].config.model)
    loaded = {name: cobra.load(runs[former].folder, device="cpu") for name, former in FORMER.items()}
    return {"align": build_vlm(fields, {}).eval()} | loaded


def test_checkpoints_hold_cobras_modules(runs):
    for name, modules in TRAINED.items():
        # Towers that were trained once are in no other file: they go along.
        expected = modules | {TOWERS} if name == "again" else modules
        assert set(runs[name].saved()) == expected, name


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_starts_from_the_checkpoint_of_the_one_before(runs, starts, name):
    """The first loss is taken before the first update, so it is that of the checkpoint."""
    [first, *_] = runs[name].logged("Loss (Raw)")
    assert first == pytest.approx(loss_on_first_batch(runs[name], starts[name]), rel=1e-5)
    weights = json.loads((runs[name].folder / "provenance.json").read_text())["weights"]
    if name == "align":
        assert weights == {"path": None, "sha256": None, "modules": []}
        return
    checkpoint = runs[FORMER[name]].folder / LATEST
    assert (weights["path"], weights["sha256"]) == (str(checkpoint.resolve()), sha256_file(checkpoint))
    assert set(weights["modules"]) == set(runs[FORMER[name]].saved())
    # The numbers tell checkpoints apart: the one before that has another loss.
    earlier = starts[FORMER[name]]
    assert first != pytest.approx(loss_on_first_batch(runs[name], earlier), rel=1e-3)


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_changes_its_modules_and_no_other(runs, starts, name):
    for module in (TOWERS, LLM, PROJECTOR):
        changed = differing(runs[name].vlm, starts[name], module)
        if module not in TRAINED[name]:
            assert not any(changed), module
        else:
            # The last block of a tower takes no part: features are those of the block before it.
            assert any(changed) if module == TOWERS else all(changed), module


def test_an_align_run_that_is_given_is_the_one_that_is_found(runs, data):
    told = train(data, "finetune", "--pretrained_checkpoint", str(runs["align"].folder), "--run_id", "told")
    assert told.logged("Loss (Raw)") == runs["finetune"].logged("Loss (Raw)")
    for module in (LLM, PROJECTOR):
        assert not any(differing(told.vlm, runs["finetune"].vlm, module))


def load_without_towers(run: Run, folder: Path) -> CobraVLM:
    """Load a copy of a run whose checkpoint has lost its towers."""
    shutil.copytree(run.folder, folder)
    modules = run.saved()
    del modules[TOWERS]
    torch.save({"model": modules}, folder / LATEST)
    return cobra.load(folder, device="cpu")


def test_trained_towers_are_loaded_and_change_the_logits(runs, starts, tmp_path):
    """Cobra saves them and loads the released ones in their place."""
    run = runs["full-finetune"]
    whole, without = cobra.load(run.folder, device="cpu"), load_without_towers(run, tmp_path / "run")
    assert not any(differing(without, starts["align"], TOWERS))
    assert not any(differing(without, whole, LLM)) and not any(differing(without, whole, PROJECTOR))
    dataset, lengths, collator = rows_of(run, whole)
    batch = collator([dataset[row] for row, (has_image, _) in enumerate(lengths) if has_image])
    with torch.no_grad():
        trained, found, other = (vlm(**batch).logits for vlm in (run.vlm, whole, without))
    assert torch.equal(found, trained)
    assert (other - trained).abs().max() > 0.1


def test_trained_towers_are_loaded_and_change_the_answers(data, tmp_path):
    """From the model that can see: the projector of the chain has learned too little for answers about pictures."""
    run = train(
        data,
        "full-finetune",
        *("--model.arch_specifier", "no-align+fused-gelu-mlp", "--pretrained_checkpoint", "cobra-tiny"),
        *("--run_id", "seeing", "--model.finetune_learning_rate", "2e-3"),
    )
    builder = run.vlm.get_prompt_builder()
    builder.add_turn("human", QUESTION)
    prompt = builder.get_prompt()
    trained, found, other = (
        [vlm.generate(picture(seed), prompt, max_new_tokens=12) for seed in range(6)]
        for vlm in (run.vlm, cobra.load(run.folder, device="cpu"), load_without_towers(run, tmp_path / "run"))
    )
    assert found == trained
    assert other != trained


@pytest.mark.parametrize("former", ["finetune", "full-finetune"])
def test_a_finetune_of_a_finished_run_starts_at_its_losses(runs, data, former):
    """At a rate that moves nothing, the first look at the held-out rows finds what the last one had found."""
    held_still = train(
        data,
        "finetune",
        *("--pretrained_checkpoint", str(runs[former].folder), "--run_id", f"after-{former}"),
        *("--model.finetune_learning_rate", "1e-30", "--eval_interval_steps", "1"),
    )
    checkpoint = cobra.load(runs[former].folder, device="cpu")
    assert held_still.logged("Loss (Raw)")[0] == pytest.approx(loss_on_first_batch(held_still, checkpoint), rel=1e-5)
    [*_, last] = runs[former].logged("Validation Loss")
    losses = held_still.logged("Validation Loss")
    assert losses == pytest.approx([last] * STEPS, rel=1e-5)
    assert len(losses) == STEPS
