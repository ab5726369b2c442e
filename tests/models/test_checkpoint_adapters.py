"""Checkpoints with adapters: what they are merged into, and the refusal of everything that does not belong together."""

import json
import shutil

import pytest
import torch
from lora_run import TINY_IDS, adapted_vlm, write_lora_run
from scratch import scratch_fields

import cobra
from cobra.models.backbones.llm.specs import TINY_FOLDER
from cobra.models.checkpoint import merge_adapter, read_checkpoint
from cobra.models.load import build_vlm
from cobra.models.run_folder import LATEST, PROVENANCE
from cobra.util.errors import UserError

START = TINY_FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def adapted():
    return adapted_vlm(START)


@pytest.fixture(scope="module")
def whole_run(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    shutil.copy(START, folder / "start.safetensors")
    return write_lora_run(folder / "run", adapted, folder / "start.safetensors", "cobra-tiny")


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy that a test may change; its start lies beside it."""
    shutil.copytree(whole_run.parent, tmp_path / "copy")
    record = json.loads((tmp_path / "copy" / "run" / PROVENANCE).read_text())
    record["weights"]["path"] = str(tmp_path / "copy" / "start.safetensors")
    (tmp_path / "copy" / "run" / PROVENANCE).write_text(json.dumps(record))
    return tmp_path / "copy" / "run"


def inputs(vlm):
    generator = torch.Generator().manual_seed(3)
    pixels = {name: torch.randn(2, 3, 48, 48, generator=generator) for name in vlm.vision_backbone.tower_names}
    return {"input_ids": torch.randint(2, 700, (2, 9), generator=generator), "pixel_values": pixels}


@torch.no_grad()
def assert_same_answers(vlm, expected):
    found, wanted = vlm(**inputs(vlm)).logits, expected(**inputs(expected)).logits
    # Of the order of 10: they are no constants.
    assert wanted.std() > 1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_the_run_holds_the_projector_and_the_adapters_only(whole_run):
    modules = torch.load(whole_run / LATEST, weights_only=True)["model"]
    assert list(modules) == ["projector", "lora"]
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in modules["lora"])


def test_a_loaded_run_answers_as_the_adapted_model(adapted, whole_run):
    assert_same_answers(cobra.load(whole_run, device="cpu"), adapted)


def test_the_adapters_change_the_answers(whole_run):
    with pytest.raises(AssertionError, match="not close"):
        assert_same_answers(cobra.load(whole_run, device="cpu"), cobra.load("cobra-tiny", device="cpu"))


def test_a_loaded_run_is_of_this_project(whole_run):
    vlm = cobra.load(whole_run / LATEST, device="cpu")
    assert not vlm.is_stock
    assert vlm.checkpoint_path == whole_run / LATEST


def test_the_bare_backbones_as_start(tmp_path):
    adapted = adapted_vlm(None)
    run = write_lora_run(tmp_path / "run", adapted, None)
    assert_same_answers(cobra.load(run, device="cpu"), adapted)


def test_a_start_without_language_model_brings_the_backbones_own(tmp_path):
    torch.save({"model": {"projector": read_checkpoint(START)["projector"]}}, tmp_path / "align.pt")
    adapted = adapted_vlm(tmp_path / "align.pt")
    run = write_lora_run(tmp_path / "run", adapted, tmp_path / "align.pt")
    assert_same_answers(cobra.load(run, device="cpu"), adapted)


def test_a_run_with_adapters_starts_from_another_one(whole_run, tmp_path):
    second = adapted_vlm(whole_run / LATEST)
    run = write_lora_run(tmp_path / "run", second, whole_run / LATEST)
    assert_same_answers(cobra.load(run, device="cpu"), second)


def test_a_start_that_was_moved_is_found_by_its_name(run, adapted):
    (run.parent / "start.safetensors").unlink()
    assert_same_answers(cobra.load(run, device="cpu"), adapted)


def test_a_start_that_is_gone(run):
    (run.parent / "start.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"pretrained_checkpoint": str(run / "other.pt")}))
    with pytest.raises(UserError, match=r"only adapters, for the weights of .*start.safetensors, which are gone"):
        cobra.load(run)


def test_a_start_that_is_gone_and_had_no_name(run):
    (run.parent / "start.safetensors").unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"pretrained_checkpoint": None}))
    with pytest.raises(UserError, match=r"only adapters, for the weights of .*start.safetensors, which are gone"):
        cobra.load(run)


def test_a_start_that_was_changed(run):
    start = run.parent / "start.safetensors"
    values = start.read_bytes()
    start.write_bytes(values[:-1] + bytes([values[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file any more that the adapters of"):
        cobra.load(run)


@pytest.mark.parametrize("record", [[], {}, {"weights": None}, {"weights": {"path": None}}])
def test_a_record_that_names_no_start(run, record):
    (run / PROVENANCE).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"provenance.json does not say, as weights.path and weights.sha256"):
        cobra.load(run)


@pytest.mark.parametrize("lora", [None, {}, {"rank": 0, "alpha": 1}, {"rank": "3", "alpha": 1}, {"rank": 3}])
def test_a_configuration_that_does_not_say_how_adapters_are_scaled(run, lora):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"lora": lora}))
    with pytest.raises(UserError, match=r"config.json has lora.rank .* and the run's checkpoint holds adapters"):
        cobra.load(run)


def test_adapters_of_random_weights_are_of_no_use(run):
    record = json.loads((run / PROVENANCE).read_text())
    (run / PROVENANCE).write_text(json.dumps(record | {"weights": {"path": None, "sha256": None}}))
    config = json.loads((run / "config.json").read_text())
    config["model"]["llm_backbone_id"] = "mamba-0.5m-init-zephyr"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="random initial values of mamba-0.5m-init-zephyr"):
        cobra.load(run)


def test_merging_by_hand():
    llm = {"a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16), "b": torch.ones(1)}
    adapter = {"a.lora_A.weight": torch.tensor([[1.0, 10.0]]), "a.lora_B.weight": torch.tensor([[0.5], [2.0]])}
    merged = merge_adapter(llm, adapter, 2.0, "here")
    assert merged["a.weight"].tolist() == [[2.0, 12.0], [7.0, 44.0]]
    assert merged["a.weight"].dtype == torch.float32
    assert merged["b"] is llm["b"]
    assert llm["a.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


A, B = torch.ones(2, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"a.lora_A.weight": A}, "'a.lora_A.weight' has no counterpart"),
        ({"a.lora_B.weight": B}, "'a.lora_B.weight' has no counterpart"),
        ({"a.magnitude": A}, "'a.magnitude' has no counterpart"),
        ({"b.lora_A.weight": A, "b.lora_B.weight": B}, "another model: it has no b.weight"),
        ({"a.lora_A.weight": A, "a.lora_B.weight": B[:3]}, r"\(3, 2\) times \(2, 3\) is not of the shape \(4, 3\)"),
        ({"a.lora_A.weight": A[:1], "a.lora_B.weight": B}, r"\(4, 2\) times \(1, 3\)"),
        ({"a.lora_A.weight": A[:, :2], "a.lora_B.weight": B}, r"\(4, 2\) times \(2, 2\)"),
        ({"a.lora_A.weight": A[0], "a.lora_B.weight": B}, r"times \(3,\)"),
    ],
)
def test_adapters_that_do_not_fit(adapter, message):
    with pytest.raises(UserError, match=message):
        merge_adapter({"a.weight": torch.ones(4, 3)}, adapter, 1.0, "here")


def test_what_is_no_tensor_is_refused(run):
    values = torch.load(run / LATEST, weights_only=True)
    values["model"]["lora"]["llm.backbone.layers.0.mixer.in_proj.lora_A.weight"] = [1, 2]
    torch.save(values, run / LATEST)
    with pytest.raises(UserError, match="the lora in .* which is not an ordinary tensor but a list"):
        cobra.load(run)


def test_adapters_without_the_runs_files(run, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(run / LATEST, tmp_path / "alone" / "latest.pt")
    with pytest.raises(UserError, match="no config.json beside it"):
        read_checkpoint(tmp_path / "alone" / "latest.pt")


def test_every_way_of_reading_merges(whole_run, adapted):
    checkpoint = read_checkpoint(whole_run / LATEST)
    assert {"projector", "llm_backbone"} <= checkpoint.keys()
    vlm = build_vlm(scratch_fields(**TINY_IDS), checkpoint)
    assert "llm_backbone" in vlm.load_from_checkpoint("finetune", whole_run, whole_run / LATEST)
    assert_same_answers(vlm.eval(), adapted)
