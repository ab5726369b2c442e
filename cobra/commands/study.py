"""Train the arms of a study, score them alike, and give a verdict on what the reasoning did."""

from cobra.commands.base import Command
from cobra.study.config import StudyConfig
from cobra.util.help_text import Usage
from cobra.util.waiting import loading


def main(config: StudyConfig) -> int:
    """Run the study, or what of it is left; return 75 (130 for the keyboard) where a request to stop ended it."""
    with loading():
        from cobra.study.run import run_study
        from cobra.study.scenes import with_scenes
        from cobra.training.preemption import Stopped

    try:
        run_study(with_scenes(config))
    except Stopped as stopped:
        return stopped.exit_code
    return 0


COMMAND = Command(
    main,
    StudyConfig,
    Usage(
        "study",
        (
            "--scenes 8000",
            "--dataset.type llava-cot-100k --model.type cobra+3b --pretrained_checkpoint cobra+3b --nproc 8",
            "--dataset.type llava-cot-100k --model.type cobra+3b --pretrained_checkpoint cobra+3b --cell 0",
        ),
        (
            *(
                "arms",
                "seeds",
                "match",
                "study_dir",
                "questions",
                "questions_image_dir",
                "max_new_tokens",
                "batch_size",
            ),
            *("nproc", "jobs", "cell", "scenes", "dataset.type", "model.type", "pretrained_checkpoint", "device"),
        ),
    ),
)
