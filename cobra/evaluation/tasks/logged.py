"""Answers that lmms-eval has scored: any task and any models, with the intervals, p-values and page of every task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console

from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.data.captioned_image import CaptionedImage
from cobra.evaluation.data.lmms_eval_logs import LoggedTask, Sample, TaskLog, metric_names
from cobra.evaluation.metrics.base import Metric, RatioMetric
from cobra.evaluation.report.results import VariantResult
from cobra.evaluation.report.words import Words
from cobra.evaluation.responses.protocol import Answer
from cobra.evaluation.tasks.base import Questions, Scores, Task
from cobra.reasoning.trace import extract_reasoning_trace, given_conclusion
from cobra.util.errors import UserError
from cobra.util.files import sha256_file
from cobra.util.numbers import counted
from cobra.util.printable import printable

_LABEL_CHARACTERS = 80


class LogTask(Task):
    """One task of lmms-eval, answered and scored by that program."""

    def __init__(self, config: BenchmarkConfig, logged: LoggedTask) -> None:
        """Take the logs of a task.

        Raises:
            UserError: No metric has a number for each document.
        """
        super().__init__(config)
        self._logged = logged
        self._metrics, self._left_out = metric_names(list(logged.models.values()))
        if not self._metrics:
            raise UserError(
                f"the logs of the task {logged.name} have no metric with a number for each document: "
                f"{', '.join(self._left_out) or 'there is none at all'}. What is computed from all answers together "
                "cannot be compared document by document"
            )

    def ask(self) -> Questions:
        """Return the documents; no model is asked."""
        name, models = self._logged.name, self._logged.models
        samples = next(iter(models.values())).samples.values()
        images = [CaptionedImage(one.doc_id, f"document {one.doc_id}", (one.target,), one.question) for one in samples]
        remarks = [f"{model}: {log.path}" for model, log in models.items()]
        if self._logged.older:
            remarks.append(
                f"{counted(self._logged.older, 'older log')} of the task {name} in the same folders left out"
            )
        if self._left_out:
            remarks.append(f"left out, without a number for each document: {', '.join(self._left_out)}")
        logs = {
            model: {"path": str(log.path), "sha256": sha256_file(log.path), **log.about}
            for model, log in models.items()
        }
        return Questions(
            images,
            None,
            {"lmms_eval": {"task": name, "logs": logs, "metrics_left_out": self._left_out}},
            tokenizer=f"lmms-eval-{name}",
            remarks=remarks,
            extra_variants=list(models),
            words=Words(f"{name} of lmms-eval on", "answered", "document", "answer", "target"),
        )

    def score(self, answers: Mapping[str, Sequence[Answer]], console: Console) -> Scores:
        """Return the scores that lmms-eval has given."""
        logs = self._logged.models
        judging = {name: all(_is_verdict(log, name) for log in logs.values()) for name in self._metrics}
        return Scores({model: self._result(log, judging) for model, log in logs.items()}, {})

    def _result(self, log: TaskLog, judging: Mapping[str, bool]) -> VariantResult:
        samples = list(log.samples.values())
        answers = [
            Answer(
                *(one.doc_id, one.question, one.raw, one.scored),
                _source(one),
                extract_reasoning_trace(one.raw).is_valid,
            )
            for one in samples
        ]
        metrics = {name: _metric(log, name, judging[name]) for name in self._metrics}
        return VariantResult([one.scored for one in samples], metrics, answers)


def _source(sample: Sample) -> str:
    """Return what of an answer the task compared."""
    if sample.scored.strip() == sample.raw.strip():
        return "text"
    return "conclusion" if given_conclusion(sample.raw) == (sample.scored, "conclusion") else "filtered text"


def _is_verdict(log: TaskLog, name: str) -> bool:
    """Return True if a metric is 1 or 0 for every document."""
    return all(sample.scores.get(name) in (0.0, 1.0) for sample in log.samples.values())


def _metric(log: TaskLog, name: str, judges: bool) -> Metric:
    """Return the mean of a metric over the documents that have it, which are all or those of a category."""
    having = np.array([name in sample.scores for sample in log.samples.values()])
    scores = np.array([sample.scores.get(name, 0.0) for sample in log.samples.values()])
    label = printable(name, _LABEL_CHARACTERS)
    about: dict[str, Any] = {"share": label if judges else "", "judges": judges}
    about["lower_is_better"] = not log.higher_is_better.get(name, True)
    note = "" if having.all() else f"of {counted(int(having.sum()), 'document')}"
    return RatioMetric(scores, having, label, note, **about)
