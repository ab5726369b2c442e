"""Logs of lmms-eval as scores of a study's arms: every task and metric is one more measure."""

from collections.abc import Sequence
from pathlib import Path

from cobra.evaluation.data.lmms_eval_logs import LoggedTask, metric_names, read_logs
from cobra.study.exam import Score
from cobra.util.errors import UserError


def read_logged_scores(flags: Sequence[str], names: Sequence[str]) -> dict[str, list[Score]]:
    """Read the scores of models by arm.

    Args:
        flags: `ARM=FOLDER` of every model, several of an arm for its seeds.
        names: Arms that there are.

    Raises:
        UserError: A flag is not of that form, its arm is unknown or has other tasks than the first, there is one arm
            alone, a folder has no log, or a task has no metric of single documents.
    """
    pairs = [split_name(flag, "--lmms_eval_logs") for flag in flags]
    if unknown := sorted({name for name, _ in pairs} - set(names)):
        raise UserError(f"--lmms_eval_logs: no arm is called {', '.join(unknown)}; there are {', '.join(names)}")
    if not pairs:
        return {}
    if len({name for name, _ in pairs}) < 2:
        raise UserError(
            f"--lmms_eval_logs: there are logs of {pairs[0][0]} alone, which are compared with nothing; give those of "
            "another arm's models too"
        )
    tasks = read_logs([Path(place) for _, place in pairs])
    for task in tasks:
        if len(task.models) != len(pairs):
            raise UserError(
                f"--lmms_eval_logs: the folders hold the logs of {len(task.models)} models and {len(pairs)} were "
                "named: give the folder of one model each"
            )
    kept = [(task, metric) for task in tasks for metric in _metrics(task)[0]]
    lower = [_measure(task, metric) for task, metric in kept if _is_lower_better(task, metric)]
    left_out = [_measure(task, metric) for task in tasks for metric in _metrics(task)[1]]
    scores: dict[str, list[Score]] = {}
    for place, (name, _) in enumerate(pairs):
        values = {_measure(task, metric): _values(task, place, metric) for task, metric in kept}
        scores.setdefault(name, []).append(Score(values, lower_is_better=lower, left_out=left_out))
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


def _metrics(task: LoggedTask) -> tuple[list[str], list[str]]:
    """Return the metrics with a number for the same documents of all models, two or more, and those that are left out.

    Raises:
        UserError: There are none of the first.
    """
    logs = list(task.models.values())
    names, others = metric_names(logs)
    kept = [name for name in names if sum(name in sample.scores for sample in logs[0].samples.values()) > 1]
    left_out = [name for name in names if name not in kept] + others
    if not kept:
        files = ", ".join(str(log.path) for log in logs)
        raise UserError(
            f"--lmms_eval_logs: the logs of the task {task.name} have no metric with a number for the same two or more "
            f"documents: {', '.join(left_out) or 'there is none at all'}. What is computed from all answers together "
            f"cannot be compared document by document; move these files away: {files}"
        )
    return kept, left_out


def _is_lower_better(task: LoggedTask, metric: str) -> bool:
    return not all(log.higher_is_better.get(metric, True) for log in task.models.values())


def _measure(task: LoggedTask, metric: str) -> str:
    return f"{task.name} ({metric}{', lower is better' if _is_lower_better(task, metric) else ''})"


def _values(task: LoggedTask, place: int, metric: str) -> list[float]:
    """Return a model's numbers of a metric, those documents left out that have none."""
    samples = list(task.models.values())[place].samples.values()
    return [sample.scores[metric] for sample in samples if metric in sample.scores]
