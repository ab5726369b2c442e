"""Bad input of a study is told before anything is trained, and a folder keeps to the settings it was begun with."""

import pytest

from cobra.preprocessing.datasets.arrow_rows import read_rows
from cobra.study.cells import cells_of, training_config
from cobra.study.checks import check_flags, check_settings
from cobra.study.matching import open_arms, questions_of
from cobra.study.run import run_study
from cobra.util.errors import UserError


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


def test_a_folder_of_other_settings_is_refused_before_anything_runs(config, change):
    steps = dict.fromkeys(config.arms)
    check_settings(config, "abc", steps)
    check_settings(change(seeds=(1, 2, 3, 4), nproc=2, batch_size=3), "abc", steps)
    for changed, digest, name in (
        (change(finetune_max_steps=3), "abc", "model"),
        (change(max_new_tokens=9), "abc", "max_new_tokens"),
        (config, "abd", "exam_sha256"),
    ):
        with pytest.raises(UserError, match=rf"other settings \({name}\)"):
            check_settings(changed, digest, steps)
    with pytest.raises(UserError, match="steps of full"):
        check_settings(config, "abc", steps | {"full": 7})
    with pytest.raises(UserError, match="other settings"):
        run_study(change(max_new_tokens=9))
    assert not (config.study_dir / "runs").exists()


def test_a_cell_is_a_training_of_its_own_arm_and_seed(change):
    config = change(arms=("full", "without:CAPTION"), seeds=(5, 6), match="tokens")
    cells = cells_of(config)
    assert [cell.name for cell in cells] == ["full-5", "without-CAPTION-5", "full-6", "without-CAPTION-6"]
    training = training_config(config, cells[3], 12)
    assert (training.dataset.answer, training.seed, training.run_id) == ("without:CAPTION", 6, "without-CAPTION-6")
    assert training.model.finetune_max_steps == 12 and config.model.finetune_max_steps == 2
    assert training.run_root_dir == config.study_dir / "runs" and training.eval_interval_steps > 10**6
