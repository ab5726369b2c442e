"""Bad input of a study is told before anything is trained, and a folder keeps to the settings it was begun with."""

import hashlib
import json
import os
import shutil

import pytest

from cobra.export.config import ExportConfig
from cobra.export.export import export
from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.study import origin, scenes
from cobra.study.cells import Trainings, cells_of, training_config
from cobra.study.checks import SETTINGS, check_flags, check_settings
from cobra.study.config import StudyConfig
from cobra.study.exam import read_exam
from cobra.study.matching import open_arms, questions_of
from cobra.study.origin import EXAM, ROWS, START_WEIGHTS, FileHashes
from cobra.study.run import run_study
from cobra.study.scenes import with_scenes
from cobra.util.cli import parse
from cobra.util.errors import UserError
from cobra.util.files import sha256_file


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"arms": ("full", "best")}, "--dataset.answer 'best' is unknown"),
        ({"arms": ("full",)}, "arms.*two or more"),
        ({"arms": ("full", "full")}, "--arms has full more than once"),
        ({"seeds": (1, 2, 1)}, "--seeds has 1 more than once"),
        ({"seeds": ()}, "seeds.*one or more"),
        ({"match": "time"}, "--match 'time' is unknown"),
        ({"jobs": 0}, "jobs.*at least 1"),
        ({"cell": 9}, "cell.*from 0 to 8"),
        ({"seed": 3}, "--seed: a study sets this"),
        ({"run_id": "mine"}, "--run_id: a study sets this"),
        ({"answer": "conclusion"}, "--dataset.answer: a study sets this"),
        ({"dry_run": True}, "--dry_run plans one training"),
        ({"pretrained_checkpoint": None}, "--pretrained_checkpoint is missing"),
        ({"vision_backbone_id": "dinosiglip-vit-so-384px"}, "cobra-tiny has vision_backbone_id dinosiglip-vit-tiny"),
        ({"finetune_global_batch_size": 5}, "batch"),
    ],
)
def test_flags_that_make_no_sense_are_refused(change, values, said):
    with pytest.raises(UserError, match=said):
        check_flags(change(**values))


def test_a_stage_that_no_row_has_and_rows_without_questions_are_refused(change, scene_rows, tmp_path):
    plain = tmp_path / "plain.json"
    text = (scene_rows / "rows.json").read_text()
    plain.write_text(text.replace("CAPTION>", "VIEW>"))
    assert len(read_rows(plain)) == 21
    with pytest.raises(UserError, match="without:CAPTION: no answer"):
        open_arms(change(arms=("full", "without:CAPTION"), finetune_stage_components=(plain, scene_rows / "images")))
    with pytest.raises(UserError, match="custom has no held-out rows"):
        questions_of(change(questions=None))


FILES = {START_WEIGHTS: "a" * 64, ROWS: "b" * 64, EXAM: "c" * 64}


def test_a_folder_of_other_settings_is_refused_before_anything_runs(config, change):
    steps = dict.fromkeys(config.arms)
    check_settings(config, FILES, steps)
    check_settings(change(seeds=(1, 2, 3, 4), nproc=2, batch_size=3), FILES, steps)
    for changed, name in ((change(finetune_max_steps=3), "model"), (change(max_new_tokens=9), "max_new_tokens")):
        with pytest.raises(UserError, match=rf"other settings \({name}\)"):
            check_settings(changed, FILES, steps)
    with pytest.raises(UserError, match="questions or captions: sha256 dddddddddddd, then cccccccccccc"):
        check_settings(config, FILES | {EXAM: "d" * 64}, steps)
    with pytest.raises(UserError, match="steps of full"):
        check_settings(config, FILES, steps | {"full": 7})
    with pytest.raises(UserError, match="other settings"):
        run_study(change(max_new_tokens=9))
    assert not (config.study_dir / "runs").exists()


def test_other_weights_or_rows_at_the_same_path_are_refused_before_anything_is_trained(
    change, scene_rows, tmp_path, monkeypatch
):
    def train(self, cell, steps):
        raise UserError("training begins")

    monkeypatch.setattr(Trainings, "train", train)
    base = export(ExportConfig("cobra-tiny", tmp_path / "base", "safetensors"))
    data = shutil.copytree(scene_rows, tmp_path / "data")
    config = change(pretrained_checkpoint=str(base), dataset_root_dir=data, cell=0)
    with pytest.raises(UserError, match="training begins"):
        run_study(config)
    for file, what in (
        (base / "model.safetensors", "weights of --pretrained_checkpoint"),
        (data / "rows.json", "training rows"),
    ):
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]) if file.suffix == ".safetensors" else before + b" ")
        with pytest.raises(UserError, match=rf"{what}: sha256 \w+, then \w+.*or another --study_dir, or delete"):
            run_study(config)
        file.write_bytes(before)
    with pytest.raises(UserError, match="training begins"):
        run_study(config)


def test_a_finished_run_of_other_files_is_refused_and_nothing_is_noted(config):
    """As in a folder that is older than the hashes, or where files were changed while the study ran."""
    steps = dict.fromkeys(config.arms)
    check_settings(config, FILES, steps)
    settings = config.study_dir / SETTINGS
    older = json.loads(settings.read_text())
    del older[START_WEIGHTS], older[ROWS]
    settings.write_text(json.dumps(older))
    run_dir = config.study_dir / "runs" / cells_of(config)[-1].name
    run_dir.mkdir(parents=True)
    (run_dir / "finished.json").write_text("{}")
    record = {"weights": {"sha256": FILES[START_WEIGHTS]}, "data": {"sha256": FILES[ROWS]}}
    for part, words in (("weights", "from weights"), ("data", "on rows")):
        (run_dir / "provenance.json").write_text(json.dumps(record | {part: {"sha256": "e" * 64}}))
        with pytest.raises(UserError, match=f"shuffled-3 was trained {words} of sha256 eeeeeeeeeeee, now .*move that"):
            check_settings(config, FILES, steps)
        assert json.loads(settings.read_text()) == older
    (run_dir / "provenance.json").write_text(json.dumps(record))
    check_settings(config, FILES, steps)
    assert json.loads(settings.read_text())[ROWS] == FILES[ROWS]


def test_a_checkpoint_is_hashed_once_and_again_where_it_was_changed(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(origin, "sha256_file", lambda file: read.append(file) or sha256_file(file))
    file = tmp_path / "weights.pt"
    file.write_bytes(b"first")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    first = [FileHashes(tmp_path / "hashes", print).sha256(file, "start") for _ in range(3)]
    assert set(first) == {hashlib.sha256(b"first").hexdigest()} and len(read) == 1
    # As `cp -p` puts another file there.
    file.write_bytes(b"other")
    os.utime(file, ns=times)
    assert FileHashes(tmp_path / "hashes", print).sha256(file, "start") == hashlib.sha256(b"other").hexdigest()


def test_one_question_or_image_is_refused_before_anything_is_answered(config, scene_rows, tmp_path):
    """An effect is measured against the spread of questions, which one does not have."""
    one = tmp_path / "one.json"
    one.write_text(json.dumps(json.loads((scene_rows / "rows.json").read_text())[:1]))
    with pytest.raises(UserError, match=r"one.json has 1 question to score, and at least 2 are needed"):
        read_exam(tmp_path, 8, 1, questions=(one, scene_rows / "images", None))
    with pytest.raises(UserError, match=r"--max_images is 1 and must be at least 2"):
        read_exam(tmp_path, 8, 1, questions=(scene_rows / "rows.json", scene_rows / "images", 1))
    one.write_text(json.dumps({"000000.png": ["A red circle at the top."]}))
    with pytest.raises(UserError, match=r"one.json has 1 image to score, and at least 2 are needed"):
        read_exam(tmp_path, 8, 1, captions=(str(one), scene_rows / "images", None))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--pretrained_checkpoint runs/a", "--pretrained_checkpoint"),
        ("--questions q.json --questions_image_dir images", "--questions, --questions_image_dir"),
        ("--model.type cobra+3b --model.finetune_learning_rate 1e-4", "--model.finetune_learning_rate"),
        ("--model.type cobra-siglip+3b", "--model.type"),
        ("--dataset.type custom", "--dataset.type"),
        ("--dataset.truncation drop --dataset.answer conclusion", "--dataset.truncation, --dataset.answer"),
    ],
)
def test_flags_that_scenes_decide_are_refused_before_anything_is_drawn(tmp_path, flags, named):
    arguments = ["--scenes", "60", "--study_dir", str(tmp_path / "study"), *flags.split()]
    with pytest.raises(UserError, match=f"--scenes brings its own data and model, and has no use for {named}: "):
        with_scenes(parse(StudyConfig, arguments))
    assert not (tmp_path / "study").exists()


def test_flags_that_scenes_leave_open_are_heeded(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "_draw", lambda config, data: None)
    arguments = ["--scenes", "60", "--study_dir", str(tmp_path), "--model.type", "cobra-tiny"]
    plain = with_scenes(parse(StudyConfig, [*arguments, "--pretrained_checkpoint", "cobra-tiny"]))
    assert (plain.device, plain.max_new_tokens, plain.batch_size) == ("cpu", 160, 32)
    assert plain.model.finetune_max_steps == 400 and plain.dataset.dataset_id == "llava-cot-100k"
    given = "--device cuda --max_new_tokens 300 --batch_size 4 --model.finetune_max_steps 9".split()
    config = with_scenes(parse(StudyConfig, [*arguments, *given]))
    assert (config.device, config.max_new_tokens, config.batch_size) == ("cuda", 300, 4)
    assert config.model.finetune_max_steps == 9


def test_a_cell_is_a_training_of_its_own_arm_and_seed(change):
    config = change(arms=("full", "without:CAPTION"), seeds=(5, 6), match="tokens")
    cells = cells_of(config)
    assert [cell.name for cell in cells] == ["full-5", "without-CAPTION-5", "full-6", "without-CAPTION-6"]
    training = training_config(config, cells[3], 12)
    assert (training.dataset.answer, training.seed, training.run_id) == ("without:CAPTION", 6, "without-CAPTION-6")
    assert training.model.finetune_max_steps == 12 and config.model.finetune_max_steps == 2
    assert training.run_root_dir == config.study_dir / "runs" and training.eval_interval_steps > 10**6
