"""First and last words of a run: what it goes on from, and the commands that come next."""

from pathlib import Path

import pytest

from cobra.training.config import PretrainConfig
from cobra.training.run_directory import describe_start, next_commands
from cobra.util.cli import parse

RUN = Path("runs/my run")


@pytest.mark.fault("E11")
def test_a_resume_is_told_with_its_step_and_state():
    assert describe_start(RUN, None) == f"new run: {RUN}"
    state = RUN / "resume" / "step-001200"
    assert describe_start(RUN, state) == f"resuming the run {RUN} after step 1,200, from its state {state}"


@pytest.mark.fault("E10")
@pytest.mark.parametrize("base", [None, "cobra+3b"])
def test_a_finished_run_names_the_next_commands(base):
    config = PretrainConfig(pretrained_checkpoint=base)
    talk, page, score, share = next_commands(config, RUN)
    assert "chat 'runs/my run'" in talk and "serve" in page and "export" in share
    assert ("--baseline_checkpoint cobra+3b" in score) == (base is not None)


@pytest.mark.fault("E10")
def test_after_align_comes_the_language_model():
    config = parse(PretrainConfig, ["--stage", "align", "--model.type", "cobra-tiny", "--dataset.type", "custom"])
    [line] = next_commands(config, RUN)
    assert (
        "--model.type cobra-tiny --dataset.type custom --stage finetune --pretrained_checkpoint 'runs/my run'" in line
    )


def test_a_start_after_one_that_was_killed_before_its_first_state_says_so(tmp_path):
    assert describe_start(tmp_path, None) == f"new run: {tmp_path}"
    (tmp_path / "resume").mkdir()
    told = describe_start(tmp_path, None)
    assert "ended before it had saved a state" in told and "--save_interval_minutes" in told
