"""Per-sample logs of lmms-eval: finds those of several models, and pairs them by task and document."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import ImageId, first_names, id_of, shortened, whole_text
from cobra.util.errors import UserError
from cobra.util.files import read_json
from cobra.util.jsonl import read_records
from cobra.util.numbers import counted
from cobra.util.printable import listed

_FILE = re.compile(r"(?:(?P<date>.+?)_)?samples_(?P<task>\w.*)\.jsonl")
_WHAT = "log of lmms-eval"
_REMEDY = "lmms-eval writes such a file for every task with --log_samples --output_path FOLDER"
# What a line holds beside the metrics of its task.
_NO_METRICS = frozenset(
    ("doc_id", "doc", "doc_hash", "target", "target_hash", "prompt_hash", "arguments", "input", "input_media")
    + ("resps", "filtered_resps", "token_counts")
)


@dataclass(frozen=True)
class Sample:
    """A document of a task with one model's answer."""

    doc_id: ImageId
    question: str
    target: str
    """Right answer, as the task has it."""
    scored: str
    """Answer that the task compared, after its filters."""
    raw: str
    """Answer as the model wrote it; that of `scored` where the log has no other."""
    scores: Mapping[str, float]
    """Numbers by metric."""
    others: tuple[str, ...]
    """Metrics of which the log has no number for this document."""


@dataclass(frozen=True)
class TaskLog:
    """One model's log of a task."""

    path: Path
    samples: dict[ImageId, Sample]
    """Samples by document, in the order of their ids."""
    higher_is_better: Mapping[str, bool]
    """Directions of metrics, as the results beside the log have them; empty without these."""
    about: Mapping[str, Any]
    """Entries of the results: model, arguments, date and version, as JSON values."""


@dataclass(frozen=True)
class LoggedTask:
    """A task with the logs of all models, on the same documents."""

    name: str
    models: dict[str, TaskLog]
    """Logs by the model's name, in the order that was asked for."""
    older: int
    """Logs that were left out because the same folder has a newer one of the task."""


def read_logs(places: Sequence[Path]) -> list[LoggedTask]:
    """Read the logs of models, each in a folder (as lmms-eval's --output_path) or a file.

    A folder is one model, or several where lmms-eval has put them there; its name is the model's. Of several logs of a
    task in one folder the newest counts.

    Raises:
        UserError: A place has no log, a log is not of its form (with the line), or models have other tasks, documents
            or targets than each other.
    """
    models, older = _find(places)
    names = list(models)
    for name in names[1:]:
        for one, other in ((names[0], name), (name, names[0])):
            if lacking := sorted(models[one].keys() - models[other].keys()):
                raise UserError(
                    f"{one} has logs of the task{'s' * (len(lacking) > 1)} {listed(lacking)}, and {other} has none: "
                    f"models are compared on the same tasks. {other} has {listed(sorted(models[other]))}"
                )
    tasks = []
    for task in models[names[0]]:
        logs = {name: read_log(files[task]) for name, files in models.items()}
        _check_same_documents(task, logs)
        tasks.append(LoggedTask(task, logs, older[task]))
    return tasks


def _find(places: Sequence[Path]) -> tuple[dict[str, dict[str, Path]], Counter[str]]:
    """Return the newest log of every task by model, and by task how many older ones there are."""
    older: Counter[str] = Counter()
    found: list[tuple[Path, dict[str, Path]]] = []
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob("*samples_*.jsonl"))
        folders: dict[Path, dict[str, Path]] = {}
        for file in files:
            if match := _FILE.fullmatch(file.name):
                tasks = folders.setdefault(file.parent, {})
                older[match["task"]] += match["task"] in tasks
                # Names begin with the date, and files are sorted.
                tasks[match["task"]] = file
        if not folders:
            problem = "has no log of lmms-eval, a file DATE_samples_TASK.jsonl" if place.exists() else "does not exist"
            raise UserError(f"--lmms_eval_logs: {place} {problem}. {_REMEDY}")
        alone = len(folders) == 1 and not place.is_file()
        found += [(place if alone else folder, tasks) for folder, tasks in folders.items()]
    return dict(zip(_names([path for path, _ in found]), [tasks for _, tasks in found], strict=True)), older


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    if repeated := [path for path, count in Counter(parts).items() if count > 1]:
        raise UserError(
            f"--lmms_eval_logs names the logs of {Path(*repeated[0])} twice: give other models' beside them"
        )
    lengths = [1] * len(parts)
    names: list[str] = []
    for _ in range(max(map(len, parts))):
        names = ["-".join(part[-length:]).strip("/") for part, length in zip(parts, lengths, strict=True)]
        counts = Counter(names)
        lengths = [length + (counts[name] > 1) for name, length in zip(names, lengths, strict=True)]
    # Two paths may still be spelled alike, as a-b/c and a/b-c.
    return [name if names.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(names, 1)]


def read_log(path: Path) -> TaskLog:
    """Read one model's log of a task, and what the results beside it say of it.

    Raises:
        UserError: It is not JSON lines with a `doc_id` each, or has a document twice in other ways than a task with
            several filters has.
    """
    by_document: dict[ImageId, list[Sample]] = {}
    for record in read_records(path, _WHAT, _REMEDY):
        sample = _sample(record.value, f"line {record.number} of {path} ({_WHAT})")
        by_document.setdefault(sample.doc_id, []).append(sample)
    counts = Counter(map(len, by_document.values()))
    if len(counts) != 1:
        problem = "is empty" if not counts else "has some documents more often than others"
        raise UserError(f"{path} {problem}; {_REMEDY}, a line for each document")
    results = _results_beside(path)
    match = _FILE.fullmatch(path.name)
    directions = results.get("higher_is_better", {})
    directions = directions.get(match["task"] if match else "", {}) if isinstance(directions, dict) else {}
    config = results.get("config")
    known = {"lmms_eval_version": results.get("lmms_eval_version"), "model_name": results.get("model_name")}
    known |= {key: config.get(key) for key in ("model", "model_args", "limit")} if isinstance(config, dict) else {}
    # Whole numbers before texts, each in their order.
    order = sorted(by_document, key=lambda doc_id: (isinstance(doc_id, str), doc_id))
    return TaskLog(
        path,
        {doc_id: _joined(by_document[doc_id]) for doc_id in order},
        {
            _filtered(name, number): value
            for name, value in directions.items()
            if isinstance(value, bool)
            for number in range(1, max(counts) + 1)
        },
        {key: value for key, value in known.items() if isinstance(value, str | int | float)},
    )


def _results_beside(path: Path) -> dict[str, Any]:
    """Return the results that lmms-eval wrote with a log; empty where they are not there."""
    match = _FILE.fullmatch(path.name)
    beside = path.with_name(f"{match['date']}_results.json") if match else path
    if beside == path or not beside.is_file():
        return {}
    remedy = "leave the file out: the logs are read without it"
    content = read_json(beside, "results of lmms-eval", remedy)
    if not isinstance(content, dict):
        raise UserError(f"{beside} holds no object, as the results of lmms-eval are: {remedy}")
    return content


def _sample(value: Any, where: str) -> Sample:
    """Return a line of a log as a sample."""
    doc_id = id_of(value, "doc_id", where)
    scored = _text(value.get("filtered_resps", value.get("resps", "")))
    numbers = {name: _number(score) for name, score in value.items() if name not in _NO_METRICS}
    return Sample(
        doc_id,
        _text(value.get("input", "")),
        _text(value.get("target", "")),
        scored,
        _raw(value.get("token_counts")) or _text(value.get("resps", "")) or scored,
        {name: score for name, score in numbers.items() if score is not None},
        tuple(name for name, score in numbers.items() if score is None),
    )


def _joined(samples: Sequence[Sample]) -> Sample:
    """Return one sample of those that a task's filters make of a document, with the metrics of each."""
    first = samples[0]
    scores, others = dict(first.scores), list(first.others)
    for number, sample in enumerate(samples[1:], 2):
        scores |= {_filtered(name, number): score for name, score in sample.scores.items()}
        others += [_filtered(name, number) for name in sample.others]
    return Sample(first.doc_id, first.question, first.target, first.scored, first.raw, scores, tuple(others))


def _filtered(name: str, number: int) -> str:
    """Return the name of a metric of a task's filter, counted from 1."""
    return name if number == 1 else f"{name} (filter {number})"


def _number(value: Any) -> float | None:
    """Return the number of a metric: itself, or the `score` of an object, as lmms-eval's own comparison does."""
    if isinstance(value, dict):
        value = value.get("score")
    if not isinstance(value, int | float):
        return None
    # A whole number may be too large for any other form.
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def _raw(counts: Any) -> str:
    """Return the answer as this package's model leaves it in a log; empty for other models."""
    first = counts[0] if isinstance(counts, list) and counts else None
    raw = first.get("raw") if isinstance(first, dict) else None
    return whole_text(raw) if isinstance(raw, str) else ""


def _text(value: Any) -> str:
    """Return an answer as a text: of a list of one its only item, of other values their JSON."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return whole_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _check_same_documents(task: str, logs: Mapping[str, TaskLog]) -> None:
    """Raise a UserError where models were asked about other documents, or compared with other targets."""
    (first, one), *others = logs.items()
    for name, other in others:
        missing = {
            first: [doc_id for doc_id in other.samples if doc_id not in one.samples],
            name: [doc_id for doc_id in one.samples if doc_id not in other.samples],
        }
        sizes = f"{first} has {len(one.samples):,} documents of the task {task}, {name} has {len(other.samples):,}"
        for model, lacking in missing.items():
            if lacking:
                raise UserError(
                    f"{sizes}; {model} lacks {counted(len(lacking), 'document')}: {first_names(lacking)}. Models are "
                    "compared on the same ones: run lmms-eval on both with the same --limit and --offset"
                )
        for doc_id, sample in one.samples.items():
            if sample.target != other.samples[doc_id].target:
                targets = (
                    f"{shortened(sample.target)} for {first} and {shortened(other.samples[doc_id].target)} for {name}"
                )
                raise UserError(
                    f"document {doc_id} of the task {task} has the target {targets}: the logs are of different data "
                    "or of different versions of the task"
                )


def metric_names(logs: Sequence[TaskLog]) -> tuple[list[str], list[str]]:
    """Return the metrics with a number for the same documents in all logs, and those that are left out for want of it.

    A metric may be one of a part of the documents, as of a category; a number that only some models have is none.
    """
    having = [
        {name: {doc_id for doc_id, sample in log.samples.items() if name in sample.scores} for name in _all_names(log)}
        for log in logs
    ]
    names = list(dict.fromkeys(name for log in logs for name in _all_names(log)))
    kept = [name for name in names if having[0].get(name) and all(each.get(name) == having[0][name] for each in having)]
    return kept, [name for name in names if name not in kept]


def _all_names(log: TaskLog) -> list[str]:
    return list(dict.fromkeys(name for sample in log.samples.values() for name in (*sample.scores, *sample.others)))
