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
from cobra.doctor.finding import Finding
from cobra.preprocessing.datasets.other_forms import Form

# Kinds that are named of formats, modes and turns.
_SHOWN = 4


@dataclass
class CheckReport:
    """Everything that was found of the data."""

    data: Path
    form: Form
    sifted: Sifted
    written: Path | None = None
    """File of rows that was written."""
    how_to_write: str = ""
    """Sentence with the command that writes rows, where training does not read the data as they are."""
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
        yield from self._rows()
        if self.texts is not None:
            yield from self._answers(self.texts)
        if self.pictures is not None and self.pictures.files:
            yield from self._images(self.pictures)
        if self.lengths is not None:
            yield self._tokens(self.lengths)
        for overlap in self.overlaps:
            rows = f" and {overlap.seen_rows:,} of its rows" if overlap.seen_rows else ""
            text = (
                f"{overlap.seen_images:,} of {overlap.images:,} images of {overlap.evaluation}{rows} are among the rows"
            )
            seen = overlap.seen_images or overlap.seen_rows
            yield Finding(
                "overlap", "note" if seen else "ok", text, "take these rows out of one of them" if seen else ""
            )
        if self.refusal:
            yield Finding("training", "problem", self.refusal)
        if self.forecast is not None:
            yield from self._training(self.forecast)

    def _rows(self) -> Iterator[Finding]:
        sifted = self.sifted
        yield Finding("data", "ok", f"{self.data}: {self.form}, {sifted.read:,} read")
        if sifted.converted and self.written is None:
            text = f"{sifted.converted:,} of {sifted.read:,} are not {Form.ROWS}, which training reads"
            yield Finding("form", "problem", text, self.how_to_write)
        if sifted.refused:
            counts = ", ".join(f"{count:,} {defect}" for defect, count in sifted.refused.most_common())
            left_out = "are left out" if self.written is not None else "would be refused"
            state: Any = "note" if self.written is not None and sifted.taken else "problem"
            text = f"{sifted.refused.total():,} of {sifted.read:,} {left_out}: {counts}"
            yield Finding("refused", state, "\n".join([text, *sifted.named]), "" if self.written else self.how_to_write)
        if self.written is not None:
            yield Finding("written", "ok", str(self.written))
        for remark in self.remarks:
            yield Finding("rows", "note", remark)

    def _answers(self, texts: Texts) -> Iterator[Finding]:
        rows = texts.turns.total()
        text = f"{rows:,}: {self.with_image:,} with an image, {rows - self.with_image:,} of text only"
        if texts.turns.keys() != {1}:
            text += f"; questions a row: {_counted(texts.turns)}"
        yield Finding("rows", "ok", text)
        plain = texts.answers - texts.four_stages - texts.some_stages
        parts = (
            (texts.four_stages, "in four stages"),
            (texts.some_stages, "with stages that are not whole or not in order"),
            (plain, "without stages"),
        )
        text = ", ".join(f"{count:,} {kind}" for count, kind in parts if count)
        yield Finding("answers", "note" if texts.some_stages else "ok", text)
        if texts.repeated:
            yield Finding(
                "duplicates", "note", f"{texts.repeated:,} rows say what an earlier one says of the same image"
            )

    def _images(self, pictures: Pictures) -> Iterator[Finding]:
        text = (
            f"{pictures.files:,} files in {pictures.folder}: {_counted(pictures.formats)}; {_counted(pictures.modes)}"
        )
        if pictures.smallest is not None and pictures.largest is not None:
            (width, height), (wide, high) = pictures.smallest, pictures.largest
            text += f"; {width} x {height} to {wide} x {high} pixels"
        yield Finding("images", "ok", text)
        if pictures.bad:
            left_out = "their rows are left out" if self.written is not None else "training would stop"
            text = (
                f"{len(pictures.bad):,} files of {self.bad_image_rows:,} rows are missing or cannot be read: {left_out}"
            )
            state: Any = "note" if self.written is not None else "problem"
            remedy = (
                ""
                if self.written
                else "put whole files there, name the folder with --images, or leave them out with --write"
            )
            yield Finding("images", state, "\n".join([text, *pictures.named]), remedy)
        if pictures.same_bytes:
            yield Finding("images", "note", f"{pictures.same_bytes:,} files have the bytes of another one")
        if pictures.turned:
            text = f"{pictures.turned:,} files are stored turned (EXIF); training sees them as they are stored"
            yield Finding("images", "note", text, "turn them: mogrify -auto-orient, say")

    def _tokens(self, lengths: Lengths) -> Finding:
        text = f"{lengths.median:,} a row in the middle, {lengths.p95:,} at 95 %, {lengths.longest:,} at most"
        text += f", counted by {lengths.tokenizer}'s tokenizer"
        cut = f"; {lengths.longer:,} rows are longer than {lengths.limit:,} and are cut" if lengths.longer else ""
        if lengths.conclusion_cut:
            cut += f", {lengths.conclusion_cut:,} of them before their last answer or CONCLUSION ends"
        if lengths.unlabelled:
            cut += f"; of {lengths.unlabelled:,} no answer is left"
        remedy = "--dataset.truncation drop leaves these out" if lengths.conclusion_cut else ""
        return Finding("tokens", "note" if cut else "ok", text + cut, remedy)

    def _training(self, forecast: Forecast) -> Iterator[Finding]:
        text = (
            f"{forecast.rows:,} rows, {forecast.cut:,} of them cut; {forecast.steps_an_epoch:,} steps an epoch of "
            f"{forecast.batch} rows each, {forecast.steps:,} steps in {forecast.epochs} epochs of {forecast.model}"
        )
        yield Finding("training", "ok", text, forecast.command if self._is_ready else "")

    @property
    def _is_ready(self) -> bool:
        """True if training takes the rows that were looked at."""
        as_brought = not self.sifted.converted and not self.sifted.refused and not self.bad_image_rows
        return self.written is not None or as_brought

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        values = vars(self) | {"problems": self.problems, "findings": list(self.findings())}
        return json.dumps(values, indent=1, default=_plain)


def _plain(value: Any) -> Any:
    """Return a part of a report as JSON takes it, without the tables that are kept to look things up."""
    if not is_dataclass(value):
        return str(value)
    return {name: entry for name, entry in vars(value).items() if name not in ("keys", "contents")}


def _counted(counts: Counter[Any]) -> str:
    """Return the most frequent kinds with their numbers."""
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return (
        ", ".join(
            f"{count:,} {kind}" if isinstance(kind, str) else f"{kind} ({count:,})"
            for kind, count in counts.most_common(_SHOWN)
        )
        + more
    )
