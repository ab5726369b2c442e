"""Flags of `scripts/study.py`; imports no torch, so that `--help` answers at once."""

from dataclasses import dataclass
from pathlib import Path

from cobra.evaluation.responses.protocol import MAX_NEW_TOKENS
from cobra.training.config import PretrainConfig
from cobra.util.home_paths import PathText


@dataclass
class StudyConfig(PretrainConfig):
    """Train the arms of a study from one checkpoint over several seeds, score them alike, and give one verdict.

    All flags of training hold for every arm; `--dataset.answer`, `--seed`, `--run_id` and `--run_root_dir` are the
    study's own.
    """

    arms: tuple[str, ...] = ("full", "conclusion", "shuffled")
    """Forms of the answers to train on, values of `--dataset.answer`; two or more."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds that every arm is trained with; from one seed no effect is claimed."""
    match: str = "rows"
    """Quantity that the arms have equal: `rows` (and steps), `tokens` of text, or `flops`; the last two give arms with
    shorter answers more steps."""
    study_dir: Path = Path("runs/study")
    """Folder of everything written; the same command goes on where it was."""
    questions: Path | None = None
    """Rows whose conclusions are scored, never trained on. Default: the held-out rows of the data set."""
    questions_image_dir: Path | None = None
    """Folder of the questions' images. Default: that of the held-out rows, or of the questions' file."""
    coco_annotations: PathText | None = None
    """Captions of images that every arm describes too, in any form that benchmark.py takes; scored by CIDEr."""
    image_dir: Path | None = None
    """Folder of the images that the captions name."""
    max_images: int | None = None
    """Size of the sample of these images, always the same one. Default: all."""
    lmms_eval_logs: tuple[str, ...] = ()
    """Logs of lmms-eval of the arms' models, `ARM=FOLDER` each, that are compared in the same way."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Most tokens of an answer, the same for all arms."""
    batch_size: int = 8
    """Questions answered in one batch."""
    nproc: int = 1
    """Processes of one training, through torchrun where there are several."""
    jobs: int = 1
    """Trainings at once; they share the cores, and have to fit the memory together."""
    cell: int | None = None
    """Train and score one arm with one seed, for arrays of jobs: 0 is the first arm with the first seed, 1 the second
    arm with it. Without it the whole study is done, what is there already excepted."""
    scenes: int | None = None
    """Render that many training rows of the demonstration, and questions about them, and study cobra-tiny on them;
    data, model and its settings but the steps are the study's own. Defaults are then the CPU, batches of 32 and 160 new
    tokens."""
    scene_questions: int = 1050
    """Questions about rendered scenes, seven kinds in equal shares."""
