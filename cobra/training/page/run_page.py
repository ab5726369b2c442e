"""Page of a run, `run.html`, kept current while it trains: no network, no other file, and it reloads itself.

It is made of the run's own files, and may be made anew: `RunPage(run_dir).write()`.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from cobra.models.run_folder import PROVENANCE
from cobra.preprocessing.packed.rows import RowImages
from cobra.reasoning.trace import extract_reasoning_trace
from cobra.training.page.answers import ALL, AnsweredRow, AnswerHistory
from cobra.training.page.charts import draw_charts, sparkline
from cobra.training.page.history import MetricHistory
from cobra.training.page.status import RunStatus, read_record, read_status
from cobra.training.run_context import RunContext, StepReport
from cobra.training.samples import SAMPLES
from cobra.util.charts import axis
from cobra.util.errors import UserError
from cobra.util.files import read_json, write_json, write_text
from cobra.util.html_pages import Thumbnail, page_templates, script_of, thumbnail
from cobra.util.printable import printable
from cobra.util.redaction import redacted

PAGE = "run.html"

_HELD_OUT = "Validation Loss"

# Seconds between two versions at least, and how many times the seconds that one takes: a hundredth of the run's time.
_SECONDS = 10.0
_SHARE = 100
# Seconds after which the page says that it is no longer written, and between two looks for a run that is resumed.
_STALE_SECONDS = 600.0
_RESUMED_SECONDS = 60.0
# State of a run, in the words that the page begins with.
_WORDS = {
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Ended by an error",
    "interrupted": "Interrupted",
}
# Held-out rows on the page at most; characters of a text, and of a name.
_MOST_ROWS = 48
_CHARACTERS = 4000
_NAME_CHARACTERS = 200


class RunPage:
    """The page of one run; a part that follows its steps, and a context that ends with the run."""

    def __init__(self, run_dir: Path | str, steps: int | None = None) -> None:
        """Read nothing yet.

        Args:
            run_dir: Directory of the run, whose name is that of the run.
            steps: Steps of the whole run, which its `provenance.json` keeps from now on; None takes those kept there.
        """
        self.path = Path(run_dir) / PAGE
        self._run_dir = Path(run_dir)
        self._record = read_record(self._run_dir)
        if steps is not None:
            self._record["steps"] = steps
            write_json(self._run_dir / PROVENANCE, self._record)
        self._metrics = MetricHistory(self._run_dir / f"{self._run_dir.resolve().name}.jsonl")
        self._answers = AnswerHistory(self._run_dir / SAMPLES)
        self._config = _read_config(self._run_dir)
        self._pictures: dict[str, Thumbnail | str] = {}
        self._due = -math.inf
        self._is_asked = self._failed = False

    def __enter__(self) -> "RunPage":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.update(error)

    def __call__(self, run: RunContext, report: StepReport) -> None:
        """Write the page anew after a step, where it is time for that or the model was tried on held-out rows."""
        self._is_asked |= _HELD_OUT in report.values
        if time.monotonic() >= self._due + (0.0 if self._is_asked else _SECONDS):
            self.update()
            self._is_asked = False

    def update(self, end: BaseException | None = None) -> None:
        """Write the page; where there is no room for it the run goes on."""
        began = time.monotonic()
        try:
            self.write(end)
            self._failed = False
        except OSError as error:
            if not self._failed:
                text = f"warning: the page {self.path} could not be written ({error}); the run goes on"
                print(text, file=sys.stderr, flush=True)
            self._failed = True
        self._due = time.monotonic() + _SHARE * (time.monotonic() - began)

    def write(self, end: BaseException | None = None) -> None:
        """Write the page by what the run's files hold now; `end` is the error that is just ending the run.

        Raises:
            OSError: The disk is full, say; the page is as it was.
        """
        self._metrics.read_on()
        self._answers.read_on()
        write_text(self.path, self._render(end))

    def _render(self, end: BaseException | None) -> str:
        status = read_status(self._run_dir, self._record, end)
        charts = draw_charts(self._metrics.curves)
        rows = [self._row(row) for row in self._answers.rows(_MOST_ROWS)]
        validations = [
            f"{step:,}" + (f": {right} of {judged} right" if judged else "")
            for step, (right, judged) in zip(self._answers.steps, self._answers.right(), strict=True)
        ]
        environment = _environment()
        return environment.get_template("run.html.j2").render(
            run_id=printable(self._run_dir.resolve().name, _NAME_CHARACTERS),
            status=status,
            words=_WORDS,
            now=datetime.now(UTC),
            step=self._metrics.step,
            steps=self._record.get("steps"),
            left=self._time_left(status),
            newest=self._metrics.newest,
            best=min((point.low for point in self._points(_HELD_OUT)), default=None),
            charts=charts,
            data={
                "charts": [chart.data for chart in charts],
                "steps": self._answers.steps,
                "validations": validations,
                "seconds": _SECONDS if status.kind == "running" else _RESUMED_SECONDS,
                "stale": _STALE_SECONDS,
            },
            shares=self._shares(),
            rows=rows,
            left_out=self._answers.asked - len(rows),
            validations=validations,
            facts=_facts(self._record, self._config),
            settings=redacted(json.dumps(self._config, indent=2, ensure_ascii=False)),
            **script_of(environment, "run.js"),
        )

    def _points(self, metric: str) -> list[Any]:
        return self._metrics.curves[metric].points if metric in self._metrics.curves else []

    def _time_left(self, status: RunStatus) -> timedelta | None:
        """Return the time of the steps that are left, at the speed of the last ones."""
        steps, seconds = self._record.get("steps"), self._metrics.newest.get("Step Time")
        if status.kind != "running" or seconds is None or not isinstance(steps, int):
            return None
        return timedelta(seconds=round(max(0, steps - self._metrics.step) * seconds))

    def _shares(self) -> list[dict[str, Any]]:
        """Return the shares of right answers: of all, then by source where there are several, the biggest first."""
        counts, shares = self._answers.counts, self._answers.shares
        across = axis([point.step for curve in shares.values() for point in curve.points], margin=0)
        order = sorted(counts, key=lambda source: (source != ALL, -counts[source], source))
        return [
            {
                "source": printable(source, _NAME_CHARACTERS),
                "count": counts[source],
                "first": shares[source].points[0].last,
                "newest": shares[source].points[-1].last,
                "path": sparkline(shares[source], across),
            }
            for source in (order if len(order) > 2 else order[:1])
        ]

    def _row(self, row: AnsweredRow) -> dict[str, Any]:
        line = row.line
        image = line.get("image")
        return {
            "row": line["row"],
            "row_id": printable(str(line.get("id")), _NAME_CHARACTERS),
            "image": printable(image, _NAME_CHARACTERS) if isinstance(image, str) else None,
            "picture": self._picture(image) if isinstance(image, str) else None,
            "question": printable(line["question"], _CHARACTERS),
            "reference": _shown(line["reference"]),
            "answers": [(answer.step, answer.is_right, _shown(answer.text)) for answer in row.answers],
        }

    def _picture(self, image: str) -> Thumbnail | str:
        if image not in self._pictures:
            data = self._config.get("dataset", {})
            root = Path(str(data.get("dataset_root_dir")))
            rows, folder = data.get("holdout_components") or ["", ""]
            with suppress(UserError, OSError):
                self._pictures[image] = thumbnail(RowImages(root / rows, root / folder).open(image))
            self._pictures.setdefault(image, "The picture is not there.")
        return self._pictures[image]


def _read_config(run_dir: Path) -> dict[str, Any]:
    with suppress(UserError, OSError):
        config = read_json(run_dir / "config.json", "the configuration of the run")
        if isinstance(config, dict):
            return config
    return {}


def _shown(text: str) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Return an answer as the page shows it: (stages, text without stages, faults)."""
    trace = extract_reasoning_trace(text)
    stages = [(stage, printable(body, _CHARACTERS)) for stage, body in trace.texts]
    return stages, "" if stages else printable(text, _CHARACTERS), trace.faults


def _facts(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that a reader asks for first, by their name."""
    model, data, weights, code = (
        group if isinstance(group, dict) else {}
        for group in (config.get("model"), record.get("data"), record.get("weights"), record.get("code"))
    )
    prefix = "align" if config.get("stage") == "align" else "finetune"
    names = {"Learning rate": "learning_rate", "Rows a step": "global_batch_size", "Epochs": "epochs"}
    facts = {
        "Model": model.get("model_id"),
        "Stage": config.get("stage"),
        "Rows": data.get("path"),
        "Number of rows": data.get("rows"),
        "Starts from": weights.get("path") or "the backbones",
        **{name: model.get(f"{prefix}_{field}") for name, field in names.items()},
        "Seed": config.get("seed"),
        "Device": record.get("device"),
        "Processes": record.get("processes"),
        "Version": code.get("cobra-vlm"),
        "Commit": code.get("commit"),
    }
    return {name: redacted(str(value)) for name, value in facts.items() if value is not None}


@cache
def _environment() -> Environment:
    environment = page_templates("cobra.training")
    environment.filters |= {
        "moment": lambda moment: f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "duration": lambda span: str(timedelta(seconds=round(span.total_seconds()))),
    }
    return environment
