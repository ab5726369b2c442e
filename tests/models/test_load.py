"""Finding and loading models: run directories, files, ids and the hub, and what is kept in fp32 or carried on."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from scratch import picture, scratch_fields, scratch_vlm

import cobra
from cobra.models.checkpoint import read_checkpoint
from cobra.models.load import build_vlm
from cobra.models.registry import MODELS
from cobra.models.run_folder import LATEST, PROVENANCE, find_checkpoint
from cobra.models.vlms import CobraVLM
from cobra.training.checkpointing import save_checkpoint
from cobra.util.distributed import World
from cobra.util.errors import UserError
from cobra.util.files import sha256_file

CPU = World(0, 1, torch.device("cpu"))
FIELDS = (
    "model_id",
    "vision_backbone_id",
    "image_resize_strategy",
    "llm_backbone_id",
    "llm_max_length",
    "arch_specifier",
)
TOWERS, LLM = "vision_backbone", "llm_backbone"


def write_run(run_dir: Path, vlm: CobraVLM, stage: str = "finetune", **changes: object) -> Path:
    """Write what load() reads of a run: its configuration and a checkpoint of what the stage trains."""
    vlm.freeze_backbones(stage)
    save_checkpoint(vlm, run_dir, CPU, step=3, epoch=1, loss=1.5)
    fields = scratch_fields(**changes)
    (run_dir / "config.json").write_text(json.dumps({"model": {name: fields[name] for name in FIELDS}}))
    return run_dir


@pytest.fixture(scope="module")
def trained() -> CobraVLM:
    return scratch_vlm(1)


@pytest.fixture(scope="module")
def full_run(trained, tmp_path_factory) -> Path:
    """The run directory of a full-finetune: every module is in its checkpoint."""
    return write_run(tmp_path_factory.mktemp("full"), trained, "full-finetune")


@pytest.fixture
def run(full_run, tmp_path) -> Path:
    """A copy of the run directory that a test may change."""
    return Path(shutil.copytree(full_run, tmp_path / "run"))


def assert_same_weights(vlm, expected, *modules):
    for key in modules:
        for name, value in getattr(expected, key).state_dict().items():
            assert torch.equal(getattr(vlm, key).state_dict()[name], value), f"{key}.{name}"


def test_a_run_directory(full_run, trained):
    vlm = cobra.load(full_run, device="cpu")
    # Cobra drops the towers of a full-finetune here.
    assert_same_weights(vlm, trained, "projector", LLM, TOWERS)
    assert vlm.model_id == "cobra-tiny"
    assert vlm.checkpoint_sha256 == sha256_file(full_run / LATEST)
    assert not vlm.training
    assert not any(parameter.requires_grad for parameter in vlm.parameters())
    assert (vlm.device.type, vlm.dtype) == ("cpu", torch.float32)


def test_a_finetuned_run_holds_no_towers(tmp_path):
    """Frozen towers that the package has are not written again; the next test has the others."""
    packaged = build_vlm(scratch_fields(vision_backbone_id="dinosiglip-vit-tiny-48px"), {})
    run = write_run(tmp_path, packaged, "finetune", vision_backbone_id="dinosiglip-vit-tiny-48px")
    assert list(read_checkpoint(run / LATEST)) == [LLM, "projector"]
    assert_same_weights(cobra.load(str(run), device="cpu"), packaged, "projector", LLM, TOWERS)


def test_frozen_random_towers_are_kept(trained, tmp_path):
    """No other file holds them."""
    run = write_run(tmp_path, trained, "finetune")
    assert list(read_checkpoint(run / LATEST)) == [TOWERS, LLM, "projector"]
    assert_same_weights(cobra.load(str(run), device="cpu"), trained, "projector", LLM, TOWERS)


def test_any_checkpoint_file_of_a_run(full_run, trained):
    path = next((full_run / "checkpoints").glob("step-*.pt"))
    assert_same_weights(cobra.load(path, device="cpu"), trained, "projector", LLM, TOWERS)


def test_a_safetensors_file_with_its_configuration_beside(full_run, trained, tmp_path):
    values = {
        f"{key}.{name}": value.contiguous()
        for key, tensors in read_checkpoint(full_run / LATEST).items()
        for name, value in tensors.items()
        if not name.endswith("lm_head.weight")
    }
    save_file(values, tmp_path / "model.safetensors")
    shutil.copy(full_run / "config.json", tmp_path)
    vlm = cobra.load(tmp_path / "model.safetensors", device="cpu")
    assert_same_weights(vlm, trained, "projector", LLM, TOWERS)


def test_a_relative_path(full_run, trained, monkeypatch):
    monkeypatch.chdir(full_run / "checkpoints")
    assert_same_weights(cobra.load("latest-checkpoint.pt", device="cpu"), trained, "projector")


def test_runs_of_this_project_are_not_stock(run):
    assert cobra.load(run, device="cpu").is_stock
    (run / PROVENANCE).write_text("{}")
    assert not cobra.load(run, device="cpu").is_stock
    assert not cobra.load(run / LATEST, device="cpu").is_stock


@pytest.mark.parametrize("name", ["cobra-huge", "no/such/run", "x" * 5000, "a\0b", ""])
def test_what_is_no_model_lists_the_known_ones(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_checkpoint(name or "\t")
    assert repr(name or "\t") in str(error.value)
    assert ", ".join(MODELS) in str(error.value)


def test_a_file_without_configuration(run):
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json beside it or in the folder above"):
        cobra.load(run / LATEST)


def test_a_run_directory_without_configuration(run):
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="config.json does not exist.*scripts/pretrain.py"):
        cobra.load(run)


def test_a_run_that_has_saved_nothing(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="neither .*latest-checkpoint.pt nor model.safetensors.* has saved nothing yet"):
        cobra.load(run)


@pytest.mark.parametrize("value", [[], {}, {"model": None}, {"model": []}, 3])
def test_a_configuration_without_a_model(run, value):
    (run / "config.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=", ".join(f"model.{name}" for name in FIELDS)):
        cobra.load(run)


@pytest.mark.parametrize("name", FIELDS)
def test_every_missing_entry_is_named(run, name):
    values = json.loads((run / "config.json").read_text())
    del values["model"][name]
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"lacks the entries model.{name}$"):
        cobra.load(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arch_specifier", None),
        ("vision_backbone_id", ["x"]),
        ("llm_backbone_id", {}),
        ("llm_max_length", "512"),
        ("llm_max_length", True),
        ("image_resize_strategy", 3),
    ],
)
def test_entries_of_the_wrong_type(run, name, value):
    values = json.loads((run / "config.json").read_text())
    values["model"][name] = value
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"config.json has model.{name} .*type"):
        cobra.load(run)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("vision_backbone_id", "vit-9000", "'vit-9000' is unknown.*dinosiglip-vit-so-384px"),
        ("llm_backbone_id", "llama", "'llama' is unknown.*mamba-2.8b-zephyr"),
        ("arch_specifier", "mixer", "'mixer' is unknown.*fused-gelu-mlp"),
        ("image_resize_strategy", "stretch", "'stretch' is unknown.*resize-naive, resize-crop, letterbox"),
        ("llm_max_length", 0, "model.llm_max_length 0, which must be at least 1"),
        ("arch_specifier", "gelu-mlp", "projector in .* is of another architecture.*projector.4.bias"),
    ],
)
def test_entries_that_are_unknown_or_do_not_fit(run, name, value, expected):
    values = json.loads((run / "config.json").read_text())
    values["model"][name] = value
    (run / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=expected):
        cobra.load(run, device="cpu")


def test_a_checkpoint_without_a_projector(run, trained):
    torch.save({"model": {LLM: trained.llm_backbone.state_dict()}}, run / LATEST)
    with pytest.raises(UserError, match="holds llm_backbone and no projector"):
        cobra.load(run, device="cpu")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_mambas_scan_in_fp32(full_run, trained, dtype):
    vlm = cobra.load(full_run, device="cpu", dtype=dtype)
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert vlm.dtype == expected
    kept = set()
    for name, parameter in vlm.named_parameters():
        if parameter.dtype == torch.float32:
            kept.add(name.partition("mixer.")[2])
            assert torch.equal(parameter, dict(trained.named_parameters())[name]), name
        else:
            assert parameter.dtype == expected, name
    assert kept == {"A_log", "D", "dt_proj.bias"}
    assert vlm.llm_backbone.llm.lm_head.weight is vlm.llm_backbone.llm.backbone.embedding.weight
    texts = ["What is it?", "And which colours does it have, if any?"]
    pixels = vlm.preprocess([picture(1), picture(2)])
    answers = vlm.generate_batch_ids(pixels, [vlm.tokenize(text) for text in texts], _greedy(5))
    assert [len(ids) for ids in answers] == [5, 5]
    # Close to fp32: half precision has 3 significant digits, and first scores are of order 1.
    prompt = [vlm.tokenize(texts[1])]
    _, scores = vlm.prefill(vlm.preprocess([picture(2)]), prompt)
    _, exact = trained.prefill(trained.preprocess([picture(2)]), prompt)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0, atol=0.05 * exact.abs().max().item())


def _greedy(tokens: int):
    from cobra.models.vlms import GenerationOptions

    return GenerationOptions(max_new_tokens=tokens, eos_token_id=-1)


def test_an_unknown_dtype_or_device(full_run):
    with pytest.raises(UserError, match="the dtype 'int4' is unknown"):
        cobra.load(full_run, device="cpu", dtype="int4")
    with pytest.raises(UserError, match="'warp' is not a device"):
        cobra.load(full_run, device="warp")


def test_altered_modules_stay_in_the_checkpoints_of_later_stages(full_run, trained, tmp_path):
    """A finetune from a full-finetune has towers that nobody else has: its checkpoint must bring them along."""
    vlm = scratch_vlm(2)
    vlm.load_from_checkpoint("finetune", tmp_path / "next", full_run / LATEST)
    run = write_run(tmp_path / "next", vlm, "finetune")
    assert list(read_checkpoint(run / LATEST)) == [TOWERS, LLM, "projector"]
    assert_same_weights(cobra.load(run, device="cpu"), trained, TOWERS, LLM, "projector")
    aligned = write_run(tmp_path / "aligned", vlm, "align")
    assert_same_weights(cobra.load(aligned, device="cpu"), trained, TOWERS, LLM, "projector")


def test_modules_that_a_checkpoint_did_not_change_stay_out(tmp_path):
    vlm = build_vlm(scratch_fields(vision_backbone_id="dinosiglip-vit-tiny-48px"), {})
    torch.save({"model": {TOWERS: vlm.vision_backbone.state_dict()}}, tmp_path / "same.pt")
    assert vlm.load_from_checkpoint("finetune", tmp_path / "run", tmp_path / "same.pt") == [TOWERS]
    vlm.freeze_backbones("finetune")
    assert vlm.checkpoint_modules == [LLM, "projector"]


def test_an_aligned_architecture_takes_the_projector_of_its_own_align_run(tmp_path):
    aligned = scratch_vlm(3, arch_specifier="fused-gelu-mlp")
    with torch.no_grad():
        aligned.projector.projector[0].bias += 1
    write_run(tmp_path / "custom+cobra-tiny+stage-align+x7", aligned, "align")
    # Of another seed: not to be taken.
    write_run(tmp_path / "custom+cobra-tiny+stage-align+x8", scratch_vlm(4, arch_specifier="fused-gelu-mlp"), "align")
    vlm = scratch_vlm(5, arch_specifier="fused-gelu-mlp")
    assert vlm.load_from_checkpoint("finetune", tmp_path / "custom+cobra-tiny+stage-finetune+x7")[-1] == "projector"
    assert_same_weights(vlm, aligned, "projector")
    assert vlm.load_from_checkpoint("align", tmp_path / "custom+cobra-tiny+stage-align+x9") == []
    with pytest.raises(UserError, match=r"stage-align\+x9.*--stage align.*--pretrained_checkpoint"):
        vlm.load_from_checkpoint("finetune", tmp_path / "custom+cobra-tiny+stage-finetune+x9")


def test_an_architecture_without_align_stage_starts_from_its_backbones(tmp_path):
    assert scratch_vlm().load_from_checkpoint("finetune", tmp_path / "run") == []


@pytest.fixture
def hub(full_run, tmp_path, monkeypatch):
    """A local folder in place of the hub; the calls are recorded."""
    shutil.copytree(full_run, tmp_path / "hub" / "cobra+3b")
    calls = []

    def download(repo_id, filename, token=None, cache_dir=None):
        calls.append((repo_id, filename, token, cache_dir))
        path = tmp_path / "hub" / filename
        if not path.is_file():
            raise EntryNotFoundError(f"404: {filename}")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return calls


@pytest.mark.parametrize("name", ["cobra+3b", "cobra-3b", "Cobra-DINOSigLIP 3B"])
def test_a_released_model_comes_from_the_hub(hub, trained, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vlm = cobra.load(name, hf_token="secret", cache_dir="cache", device="cpu")
    assert hub == [
        ("han1997/cobra", "cobra+3b/config.json", "secret", "cache"),
        ("han1997/cobra", "cobra+3b/checkpoints/latest-checkpoint.pt", "secret", "cache"),
    ]
    assert_same_weights(vlm, trained, "projector", LLM, TOWERS)
    assert vlm.is_stock


def test_a_model_that_the_hub_does_not_have(hub):
    with pytest.raises(UserError, match=r"no file cobra-base\+3b/config.json in han1997/cobra.*--hf_token"):
        cobra.load("cobra-base+3b")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), ConnectionError("no route"), OSError("disk")])
def test_a_hub_that_cannot_be_reached(monkeypatch, error):
    def download(*arguments, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match="cannot be reached.*check the network.*HF_HOME"):
        cobra.load("cobra+3b")


def test_a_folder_of_runs_names_them(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    runs = f"{tmp_path / 'first'}, {tmp_path / 'second'}"
    with pytest.raises(
        UserError, match=re.escape(f"{tmp_path} is a folder of runs, and one of them was expected: {runs}")
    ):
        find_checkpoint(tmp_path)


def test_the_packaged_model_needs_no_hub(hub):
    source = find_checkpoint("cobra-tiny")
    assert hub == []
    assert source.is_stock
    assert source.path.parent == Path(cobra.__file__).parent / "models" / "tiny"
