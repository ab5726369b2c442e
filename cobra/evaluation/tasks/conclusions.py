"""Conclusions of models about held-out rows of LLaVA-CoT-100k, compared with the right ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cobra.evaluation.data.coco import sample
from cobra.evaluation.data.holdout_rows import holdout_pictures, holdout_sha256, read_holdout
from cobra.evaluation.metrics.base import MeanMetric, Metrics
from cobra.evaluation.metrics.caption_scorer import valid_structure
from cobra.evaluation.metrics.conclusion_accuracy import ConclusionScore, score_conclusions
from cobra.evaluation.report.results import VariantResult
from cobra.evaluation.report.words import CONCLUSION_WORDS
from cobra.evaluation.responses.protocol import Answer
from cobra.evaluation.tasks.base import SAMPLE_SEED, Questions, Scores, Task
from cobra.util.jsonl import to_lines
from cobra.util.numbers import counted, part_of

DEFAULT_ROWS = Path("data/download/llava-cot-100k/llava_cot_100k_holdout.json")
"""Held-out rows that `fine_tune/prepare_llava_cot.py --dataset_root data` writes."""

_LABEL = "right conclusions"


class ConclusionTask(Task):
    """Questions of held-out rows, whose answers have a right conclusion."""

    def ask(self) -> Questions:
        """Read the held-out rows and choose those that are asked."""
        path = self.config.llava_cot_annotations or DEFAULT_ROWS
        holdout = read_holdout(path)
        images = sample([row.captioned for row in holdout.rows], self.config.max_images, SAMPLE_SEED)
        chosen = {image.image_id for image in images}
        self._rows = [row for row in holdout.rows if row.number in chosen]
        digest = holdout_sha256(path)
        remark = f"{part_of(len(images), len(holdout.rows))} questions of {path}"
        if holdout.without_conclusion or holdout.without_image:
            remark += (
                f"; left out: {counted(holdout.without_conclusion, 'row')} without a CONCLUSION, "
                f"{holdout.without_image:,} without an image"
            )
        return Questions(
            images,
            holdout_pictures(path, self.config.image_dir),
            {"annotations": {"path": str(path), "form": "LLaVA-CoT rows", "sha256": digest}},
            tokenizer="conclusion-rules",
            questions_sha256=digest,
            remarks=[remark],
            words=CONCLUSION_WORDS,
        )

    def score(self, answers: Mapping[str, Sequence[Answer]], console: Console) -> Scores:
        """Compare the conclusions of every variant with the right ones."""
        scores = {
            name: score_conclusions(self._rows, [answer.raw for answer in given]) for name, given in answers.items()
        }
        verdicts = {
            f"verdicts/{name}.jsonl": to_lines((verdict.to_dict() for verdict in score.verdicts), ensure_ascii=False)
            for name, score in scores.items()
        }
        first = next(iter(scores.values()))
        # The score of always giving the commonest answer of the row's source.
        shares = {name: kind.majority / kind.n for name, kind in first.sources.items()}
        constant = MeanMetric([shares[verdict.row.source] for verdict in first.verdicts], _LABEL)
        return Scores(
            {name: _result(answers[name], score) for name, score in scores.items()},
            {"constant": {"conclusion_accuracy": constant}},
            {"conclusions": {name: score.to_dict() for name, score in scores.items()}},
            verdicts,
            [_source_table(scores)] if len(first.sources) > 1 else [],
        )


def _result(answers: Sequence[Answer], score: ConclusionScore) -> VariantResult:
    accuracy = MeanMetric(score.correct, _LABEL, share=_LABEL, judges=True)
    metrics: Metrics = {"conclusion_accuracy": accuracy, "valid_structure": valid_structure(answers)}
    return VariantResult([verdict.given for verdict in score.verdicts], metrics, answers)


def _source_table(scores: Mapping[str, ConclusionScore]) -> Table:
    """Return the share of right conclusions by the data set that rows are from."""
    title = "Right conclusions by source, %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("source")
    for column in ("n", *(name.replace("+", "\n+") for name in scores), "commonest\nanswer"):
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    for source, kind in next(iter(scores.values())).sources.items():
        shares = [score.sources[source].accuracy for score in scores.values()]
        cells = [f"{100 * share:.1f}" for share in (*shares, kind.majority / kind.n)]
        table.add_row(escape(source), str(kind.n), *cells)
    return table
