import json

import pytest
import torch
from safetensors import safe_open

from cobra.demo import tiny
from cobra.training.pretrain import PretrainConfig
from cobra.util.cli import parse
from cobra.util.errors import UserError


def write_checkpoint(run_dir, modules):
    path = run_dir / "checkpoints" / "latest-checkpoint.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": modules}, path)
    return run_dir


def modules():
    embedding = torch.randn(8, 4)
    return {
        "projector": {"projector.0.weight": torch.randn(4, 4)},
        "llm_backbone": {
            "llm.backbone.embedding.weight": embedding,
            "llm.backbone.layers.0.mixer.A_log": torch.randn(4, 2),
            "llm.backbone.layers.0.mixer.D": torch.randn(4),
            "llm.backbone.layers.0.mixer.dt_proj.bias": torch.randn(4),
            "llm.lm_head.weight": embedding,
        },
        "vision_backbone": {"dino_featurizer.pos_embed": torch.randn(1, 9, 4)},
    }


def test_packaging_keeps_all_modules_in_bf16_but_the_recurrence(tmp_path):
    source = modules()
    path = tiny.package([write_checkpoint(tmp_path / "run", source)], tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe = json.loads(file.metadata()["recipe"])
    assert "llm_backbone.llm.lm_head.weight" not in tensors
    full = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    mixer = "llm_backbone.llm.backbone.layers.0.mixer."
    assert full == {f"{mixer}A_log", f"{mixer}D", f"{mixer}dt_proj.bias"}
    expected = source["vision_backbone"]["dino_featurizer.pos_embed"].bfloat16()
    assert torch.equal(tensors["vision_backbone.dino_featurizer.pos_embed"], expected)
    assert [run["name"] for run in recipe["runs"]] == [run.name for run in tiny.RUNS]


def test_packaging_twice_gives_the_same_bytes(tmp_path):
    run_dir = write_checkpoint(tmp_path / "run", modules())
    paths = [tiny.package([run_dir], tmp_path / name) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_packaging_takes_each_module_from_the_last_run_that_trained_it(tmp_path):
    first, second = modules(), modules()
    del second["vision_backbone"]
    runs = [write_checkpoint(tmp_path / name, parts) for name, parts in (("a", first), ("b", second))]
    with safe_open(tiny.package(runs, tmp_path / "model.safetensors"), "pt") as file:
        tower = file.get_tensor("vision_backbone.dino_featurizer.pos_embed")
        projector = file.get_tensor("projector.projector.0.weight")
    assert torch.equal(tower, first["vision_backbone"]["dino_featurizer.pos_embed"].bfloat16())
    assert torch.equal(projector, second["projector"]["projector.0.weight"].bfloat16())


def test_packaging_refuses_runs_without_towers_and_one_too_large(tmp_path):
    parts = modules()
    del parts["vision_backbone"]
    with pytest.raises(UserError, match="lack vision_backbone"):
        tiny.package([write_checkpoint(tmp_path / "small", parts)], tmp_path / "x")
    large = modules() | {"projector": {"projector.0.weight": torch.zeros(2_100_000)}}
    with pytest.raises(UserError, match="4,000,000"):
        tiny.package([write_checkpoint(tmp_path / "large", large)], tmp_path / "x")
    with pytest.raises(UserError, match="does not exist"):
        tiny.package([tmp_path / "none"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_runs_form_a_chain_that_trains_the_towers_and_then_keeps_them(tmp_path):
    lines = [tiny.command(index, tmp_path) for index in range(len(tiny.RUNS))]
    assert "--pretrained_checkpoint" not in lines[0]
    for index in range(1, len(lines)):
        line = lines[index]
        assert line[line.index("--pretrained_checkpoint") + 1] == str(tmp_path / tiny.RUNS[index - 1].name)
    assert [line[line.index("--stage") + 1] for line in lines] == ["full-finetune", "full-finetune", "finetune"]
    assert [run.max_objects for run in tiny.RUNS] == [1, 3, 3]


def test_every_command_parses_as_a_configuration_of_pretraining(tmp_path):
    for index, run in enumerate(tiny.RUNS):
        script, *arguments = tiny.command(index, tmp_path)
        assert (tiny._REPOSITORY / script).is_file()
        config = parse(PretrainConfig, arguments)
        assert config.model.finetune_max_steps == run.steps
        assert config.run_root_dir / config.run_id == tmp_path / run.name


def test_a_complete_run_is_skipped_until_its_recipe_changes(tmp_path, monkeypatch):
    calls = []
    run = tiny.TrainingRun("r", 1, rows=2, data_seed=1, steps=1, batch_size=2, learning_rate=1e-3)
    monkeypatch.setattr(tiny, "RUNS", (run,))

    class Done:
        returncode = 0

    monkeypatch.setattr(tiny.subprocess, "run", lambda *a, **k: calls.append(a) or Done())
    tiny.train(0, tmp_path)
    tiny.train(0, tmp_path)
    assert len(calls) == 1
    assert (tmp_path / "data" / "r" / "rows.json").is_file()
    monkeypatch.setattr(tiny, "RUNS", (tiny.TrainingRun("r", 1, 2, 1, steps=2, batch_size=2, learning_rate=1e-3),))
    tiny.train(0, tmp_path)
    assert len(calls) == 2


def test_a_failed_run_and_an_unknown_step_are_user_errors(tmp_path, monkeypatch):
    run = tiny.TrainingRun("r", 1, rows=2, data_seed=1, steps=1, batch_size=2, learning_rate=1e-3)
    monkeypatch.setattr(tiny, "RUNS", (run,))

    class Failed:
        returncode = 3

    monkeypatch.setattr(tiny.subprocess, "run", lambda *a, **k: Failed())
    with pytest.raises(UserError, match="r ended with code 3"):
        tiny.train(0, tmp_path)
    assert not (tmp_path / "r" / "complete.json").exists()
    with pytest.raises(UserError, match="all, tokenizer, train, package"):
        tiny.make_tiny(tmp_path, "everything")
