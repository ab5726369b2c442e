"""Report of a check: its parts, as lines and as JSON."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from cobra.check.forecast import Forecast
from cobra.check.overlap import EvaluationOverlap
from cobra.check.pictures import Pictures
from cobra.check.sift import Sifted
from cobra.check.texts import Lengths, Texts
from cobra.doctor.finding import Finding, State
from cobra.preprocessing.datasets.other_forms import Form
from cobra.util.numbers import counted
from cobra.util.program import command_line

# Kinds of formats, modes and turns that are named; and rows and remarks: everything fits 40 lines.
_KINDS = 4
_NAMED = 5


@dataclass
class CheckReport:
    """Everything that was found of the data."""

    data: Path
    form: Form
    model: str
    sifted: Sifted
    command: str
    """Command that writes the rows that training takes."""
    written: Path | None = None
    """File of rows that was written."""
    with_image: int = 0
    remarks: list[str] = field(default_factory=list)
    """Remarks on rows that are taken."""
    pictures: Pictures | None = None
    bad_image_rows: int = 0
    """Rows whose image is missing, unreadable or elsewhere."""
    texts: Texts | None = None
    lengths: Lengths | None = None
    overlaps: list[EvaluationOverlap] = field(default_factory=list)
    refusal: str = ""
    """Sentence with which training would refuse the rows as a whole."""
    forecast: Forecast | None = None

    @property
    def problems(self) -> int:
        """Number of findings for which training would refuse the rows."""
        return sum(finding.state == "problem" for finding in self.findings())

    def findings(self) -> Iterator[Finding]:
        """Yield the findings, a line or two each."""
        yield from self._records()
        if self.texts is not None:
            yield from self._conversations(self.texts)
        if self.pictures is not None and self.pictures.files:
            yield from self._images(self.pictures)
        if self.lengths is not None:
            yield self._tokens(self.lengths)
        for overlap in self.overlaps:
            seen = overlap.seen_images or overlap.seen_rows
            rows = f", and {overlap.seen_rows:,} of its rows" if overlap.seen_rows else ""
            text = f"trained on {overlap.seen_images:,} of {overlap.images:,} images of {overlap.evaluation}{rows}"
            yield Finding("overlap", "note" if seen else "ok", text, "take them out of one of the two" if seen else "")
        if self.refusal:
            yield Finding("training", "problem", self.refusal)
        if self.forecast is not None:
            yield self._training(self.forecast)

    def _records(self) -> Iterator[Finding]:
        sifted = self.sifted
        yield Finding("data", "ok", f"{self.data}: {self.form}, {sifted.read:,} read")
        if sifted.converted and self.written is None:
            text = f"{sifted.converted:,} of {sifted.read:,} are not {Form.ROWS}, which training reads"
            yield Finding("form", "problem", text, self.command)
        if sifted.refused:
            fate = "would be refused" if self.written is None else "are left out"
            counts = ", ".join(f"{count:,} {defect}" for defect, count in sifted.refused.most_common())
            text = f"{sifted.refused.total():,} of {sifted.read:,} {fate}: {counts}"
            yield self._left_out("refused", text, sifted.named[:_NAMED], "mend them")
        if self.written is not None:
            yield Finding("written", "ok", str(self.written))
        for remark in self.remarks[:_NAMED]:
            yield Finding("rows", "note", remark)
        if len(self.remarks) > _NAMED:
            yield Finding("rows", "note", f"{len(self.remarks) - _NAMED} more remarks: --json")

    def _left_out(self, name: str, text: str, named: list[str], remedy: str) -> Finding:
        """Return a finding on rows that training would refuse, or that were left out where rows were written."""
        state: State = "problem" if self.written is None else "note"
        by = "the filter of `datasets`" if self.form is Form.PACKED else self.command
        way_out = f"{remedy}, or leave them out: {by}" if self.written is None else ""
        return Finding(name, state, "\n".join([text, *named]), way_out)

    def _conversations(self, texts: Texts) -> Iterator[Finding]:
        rows = texts.turns.total()
        text = f"{rows:,}: {self.with_image:,} with an image, {rows - self.with_image:,} of text only"
        if texts.turns.keys() != {1}:
            questions = (f"{number} in {count:,}" for number, count in texts.turns.most_common(_KINDS))
            text += f"; questions: {', '.join(questions)}"
        yield Finding("rows", "ok", text)
        parts = {
            "in four stages": texts.four_stages,
            "with stages that are not whole or not in order": texts.some_stages,
            "without stages": texts.answers - texts.four_stages - texts.some_stages,
        }
        text = ", ".join(f"{count:,} {kind}" for kind, count in parts.items() if count)
        yield Finding("answers", "note" if texts.some_stages else "ok", f"{texts.answers:,}: {text}")
        if texts.repeated:
            text = f"{counted(texts.repeated, 'row')} with the image and the words of an earlier one"
            yield Finding("duplicates", "note", text)

    def _images(self, pictures: Pictures) -> Iterator[Finding]:
        kinds = "; ".join(filter(None, map(_kinds, (pictures.formats, pictures.modes))))
        text = f"{counted(pictures.files, 'file')} in {pictures.folder}"
        if kinds:
            text += f": {kinds}"
        if pictures.smallest is not None and pictures.largest is not None:
            sizes = (f"{width:,} x {height:,}" for width, height in (pictures.smallest, pictures.largest))
            text += f"; {' to '.join(sizes)} pixels"
        yield Finding("images", "ok", text)
        if pictures.bad:
            rows = counted(self.bad_image_rows, "row")
            text = f"{counted(len(pictures.bad), 'file')} of {rows} missing, outside the folder or not to be read"
            yield self._left_out("images", text, pictures.named, "put whole files there (--images names the folder)")
        if pictures.same_bytes:
            yield Finding("images", "note", f"{counted(pictures.same_bytes, 'file')} with the bytes of another one")
        if pictures.turned:
            text = f"{counted(pictures.turned, 'file')} stored turned (EXIF), which training sees as they are stored"
            yield Finding("images", "note", text, "turn them, with mogrify -auto-orient say")

    def _tokens(self, lengths: Lengths) -> Finding:
        text = f"a row has {lengths.median:,} (median), {lengths.p95:,} (95 %), {lengths.longest:,} (longest)"
        if lengths.longer:
            text += f"; cut at {lengths.limit:,}: {counted(lengths.longer, 'row')}"
        if lengths.conclusion_cut:
            text += f", before the last CONCLUSION or answer ends: {lengths.conclusion_cut:,}"
        if lengths.unlabelled:
            text += f", so that no answer is left: {lengths.unlabelled:,}"
        if lengths.tokenizer != self.model:
            text += f". Counted by {lengths.tokenizer}'s tokenizer, which makes more of them than {self.model}'s"
            return Finding("tokens", "note", text, command_line("fetch", self.model))
        return Finding("tokens", "note" if lengths.longer else "ok", text)

    def _training(self, forecast: Forecast) -> Finding:
        text = (
            f"{counted(forecast.rows, 'row')}, {forecast.cut:,} of them cut; "
            f"{counted(forecast.steps_an_epoch, 'step')} of {counted(forecast.batch, 'row')} an epoch, "
            f"{forecast.steps:,} in {counted(forecast.epochs, 'epoch', 'epochs')} of {forecast.model}"
        )
        as_brought = not self.sifted.converted and not self.sifted.refused and not self.bad_image_rows
        is_ready = self.written is not None or as_brought
        return Finding("training", "ok", text, forecast.command if is_ready else "")

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        values = vars(self) | {"problems": self.problems, "findings": list(self.findings())}
        return json.dumps(values, indent=1, default=_plain)


def _plain(value: Any) -> Any:
    """Return a part of a report as JSON takes it, without the tables that are kept to look things up."""
    if not is_dataclass(value):
        return str(value)
    return {name: entry for name, entry in vars(value).items() if name not in ("keys", "contents")}


def _kinds(counts: Counter[str]) -> str:
    """Return the most frequent kinds with their numbers."""
    named = [f"{count:,} {kind}" for kind, count in counts.most_common(_KINDS)]
    return ", ".join([*named, *([f"{len(counts) - _KINDS} more kinds"] if len(counts) > _KINDS else [])])
