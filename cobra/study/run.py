"""Run of a study: checks first, then every arm with every seed, then the verdict and the page."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

import cobra
from cobra.models.run_folder import LATEST
from cobra.study.cells import Cell, Trainings, cells_of
from cobra.study.checks import check_flags, check_settings
from cobra.study.config import StudyConfig
from cobra.study.exam import Exam, Score, read_exam
from cobra.study.logs import read_logged_scores
from cobra.study.matching import open_arms, questions_of, steps_of
from cobra.study.origin import EXAM, ROWS, SHOWN, START_WEIGHTS, FileHashes, check_origin
from cobra.study.report import PAGE, RESULT, Findings, report
from cobra.study.verdict import START
from cobra.training.config import stage_hyperparameters
from cobra.training.preemption import StopRequests
from cobra.util.distributed import World, join_world
from cobra.util.errors import UserError
from cobra.util.files import read_json, write_json
from cobra.util.lock import hold
from cobra.util.numbers import counted
from cobra.util.tokens import read_hf_token

Say = Callable[[str], None]


@dataclass
class _Study:
    """A study while it runs."""

    config: StudyConfig
    exam: Exam
    steps: Mapping[str, int | None]
    """Steps of each arm; None where the flags of training say them."""
    files: Mapping[str, str]
    """Hashes of what the study is made of; see :mod:`cobra.study.origin`."""
    start: Path
    """Weights that all arms start from."""
    hashes: FileHashes
    world: World
    say: Say
    trainings: Trainings


def run_study(config: StudyConfig) -> None:
    """Run a study, or what of it is left.

    Raises:
        UserError: Flags make no sense, the arms cannot be made of these rows, the checkpoint is of another model, the
            folder holds a study with other settings, weights or rows, or fewer than two arms gave a score. Scores that
            are there are kept.
        Stopped: The study was asked to stop, or a training has stopped by itself, as before the end of a job's time;
            all have saved their states, and the same command goes on.
    """
    start = check_flags(config)
    say = Console(highlight=False, soft_wrap=True, markup=False).print
    logged = read_logged_scores(config.lmms_eval_logs, (START, *config.arms))
    arms = open_arms(config)
    captions = None
    if config.coco_annotations is not None:
        captions = (config.coco_annotations, config.image_dir, config.max_images)
    exam = read_exam(config.study_dir, config.max_new_tokens, config.batch_size, questions_of(config), captions)
    steps = steps_of(config, arms)
    hashes = FileHashes(config.study_dir / "hashes", say)
    rows = next(iter(arms.values())).rows
    files = {START_WEIGHTS: hashes.sha256(start, START), ROWS: rows.sha256, EXAM: exam.sha256}
    cells = cells_of(config)
    with StopRequests():
        world, trainings = join_world(config.device), Trainings(config, say)
        study = _Study(config, exam, steps, files, start, hashes, world, say, trainings)
        try:
            if config.cell is not None:
                check_settings(config, files, steps)
                cell = cells[config.cell]
                _score_cell(study, cell, trainings.train(cell, steps[cell.arm]))
                return
            with hold(config.study_dir, "another study runs"):
                check_settings(config, files, steps)
                say(
                    f"{counted(len(config.arms), 'arm')}: {', '.join(config.arms)}; "
                    f"{counted(len(config.seeds), 'seed')}; {counted(len(exam.rows), 'question')}"
                )
                scores = {START: [_score(study, str(config.pretrained_checkpoint), start, START, "full")]}
                trained, failed = _run_cells(study, cells)
                _report(study, scores | trained, failed, logged)
        finally:
            trainings.stop()


def _run_cells(study: _Study, cells: list[Cell]) -> tuple[dict[str, list[Score]], dict[str, str]]:
    """Return the scores of every arm's models, and the reasons of cells that failed.

    Programs train, `jobs` of them at once; this thread lets a trained model answer before the next training begins, so
    that no more is in memory, and a request to stop finds it here.
    """
    results: dict[Cell, Score] = {}
    failed: dict[str, str] = {}
    waiting = deque(cells)
    training: dict[Future[Path], Cell] = {}
    pool = ThreadPoolExecutor(study.config.jobs)
    try:
        while waiting or training:
            while waiting and len(training) < study.config.jobs:
                cell = waiting.popleft()
                training[pool.submit(study.trainings.train, cell, study.steps[cell.arm])] = cell
            for future in wait(training, return_when=FIRST_COMPLETED).done:
                cell = training[future]
                try:
                    results[cell] = _score_cell(study, cell, future.result())
                except Exception as error:  # noqa: BLE001 - an arm that fails costs itself
                    failed[cell.name] = str(error) or repr(error)
                    study.say(f"{cell.name} failed and is left out: {failed[cell.name]}")
                del training[future]
    finally:
        study.trainings.stop()
        pool.shutdown(cancel_futures=True)
    scores = {
        arm: [results[cell] for cell in cells if cell.arm == arm and cell in results] for arm in study.config.arms
    }
    missing = [arm for arm, models in scores.items() if not models]
    if len(missing) > len(scores) - 2:
        raise UserError(
            f"there is nothing to compare: {counted(len(missing), 'arm')} ({', '.join(missing)}) gave no score; the "
            f"reasons are above and in {study.config.study_dir / 'logs'}. The same command tries again"
        )
    return {arm: models for arm, models in scores.items() if models}, failed


def _score_cell(study: _Study, cell: Cell, run_dir: Path) -> Score:
    """Score a trained cell, or raise a UserError where the study's files were changed before it was trained."""
    check_origin(run_dir, study.files)
    return _score(study, str(run_dir), run_dir / LATEST, cell.name, cell.arm)


def _score(study: _Study, checkpoint: str, weights: Path, name: str, arm: str) -> Score:
    """Let a model answer everything, or read what an earlier start has kept of that for the same weights."""
    config = study.config
    file = config.study_dir / "scores" / f"{name}.json"
    kept = Score(**read_json(file, "the score of an arm")) if file.is_file() else None
    sha256 = study.hashes.sha256(weights, name) if weights.is_file() else ""
    # A finished run stays scored where its checkpoint has been deleted to make room.
    if kept is not None and sha256 in ("", kept.sha256):
        return kept
    if kept is not None:
        study.say(f"{name}: its score is that of other weights, and is made again")
    vlm = cobra.load(checkpoint, hf_token=read_hf_token(config.hf_token), device=str(study.world.device))
    # Gigabytes are hashed once.
    vlm.checkpoint_sha256 = sha256
    score = study.exam.take(vlm, name, arm, config.study_dir / "answers", study.world)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(score))
    means = [f"{100 * sum(values) / len(values):.1f} % {measure}" for measure, values in score.values.items()]
    study.say(f"{name}: {', '.join(means)}; {score.tokens:.0f} tokens an answer")
    return score


def _report(
    study: _Study, scores: dict[str, list[Score]], failed: dict[str, str], logged: dict[str, list[Score]]
) -> None:
    config = study.config
    flags = stage_hyperparameters(config.model, config.stage)
    usual = f"{flags.epochs} epochs" if flags.max_steps is None else str(flags.max_steps)
    steps = {arm: usual if count is None else str(count) for arm, count in study.steps.items()}
    about = {
        "starts from": f"{config.pretrained_checkpoint} (sha256 {study.files[START_WEIGHTS][:SHOWN]})",
        "rows": f"{config.dataset.dataset_id} (sha256 {study.files[ROWS][:SHOWN]})",
        "equal in all arms": config.match,
        "steps": ", ".join(f"{arm} {count}" for arm, count in steps.items()),
        "questions": f"{len(study.exam.rows):,} (sha256 {study.exam.sha256[:SHOWN]})",
        "most new tokens": str(config.max_new_tokens),
        "seeds": ", ".join(map(str, config.seeds)),
    }
    findings = Findings(scores, study.exam.kinds, about, frozenset({START}), failed, logged)
    for sentence in report(findings, config.study_dir):
        study.say(sentence)
    study.say(f"page: {Path(config.study_dir) / PAGE}; numbers: {Path(config.study_dir) / RESULT}")
