"""Logs of lmms-eval as scores of a study's arms: every task and metric is one more measure."""

from collections.abc import Sequence
from pathlib import Path

from cobra.evaluation.data.lmms_eval_logs import LoggedTask, read_logs
from cobra.study.exam import Score
from cobra.util.errors import UserError


def read_logged_scores(flags: Sequence[str], names: Sequence[str]) -> dict[str, list[Score]]:
    """Read the scores of models by arm.

    Args:
        flags: `ARM=FOLDER` of every model, several of an arm for its seeds.
        names: Arms that there are.

    Raises:
        UserError: A flag is not of that form, its arm is unknown or has other tasks than the first, or a folder has no
            log.
    """
    pairs = [split_name(flag, "--lmms_eval_logs") for flag in flags]
    if unknown := sorted({name for name, _ in pairs} - set(names)):
        raise UserError(f"--lmms_eval_logs: no arm is called {', '.join(unknown)}; there are {', '.join(names)}")
    if not pairs:
        return {}
    tasks = read_logs([Path(place) for _, place in pairs])
    for task in tasks:
        if len(task.models) != len(pairs):
            raise UserError(
                f"--lmms_eval_logs: the folders hold the logs of {len(task.models)} models and {len(pairs)} were "
                "named: give the folder of one model each"
            )
    scores: dict[str, list[Score]] = {}
    for place, (name, _) in enumerate(pairs):
        values = {
            f"{task.name} ({metric})": _values(task, place, metric) for task in tasks for metric in _metrics(task)
        }
        scores.setdefault(name, []).append(Score(values))
    return scores


def split_name(flag: str, name: str) -> tuple[str, str]:
    """Return the two parts of a value `NAME=PLACE`.

    Raises:
        UserError: It is not of that form; the flag's name is in the message.
    """
    left, sign, right = flag.partition("=")
    if not (left and sign and right):
        raise UserError(f"{name} {flag}: NAME=PLACE was expected, such as full=runs/my-run")
    return left, right


def _metrics(task: LoggedTask) -> list[str]:
    """Return the metrics that every document of every model has."""
    samples = [sample for log in task.models.values() for sample in log.samples.values()]
    return [metric for metric in samples[0].scores if all(metric in sample.scores for sample in samples)]


def _values(task: LoggedTask, place: int, metric: str) -> list[float]:
    return [sample.scores[metric] for sample in list(task.models.values())[place].samples.values()]
