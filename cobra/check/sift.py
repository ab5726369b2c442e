"""Pass over the records: which are rows that training takes, and why the others are not."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cobra.preprocessing.datasets.other_forms import Form, form_of
from cobra.preprocessing.datasets.row_keys import with_image
from cobra.preprocessing.datasets.rows import MAX_ROW_BYTES, Defect, RowError, check_form
from cobra.preprocessing.forms.records import Source
from cobra.preprocessing.forms.to_rows import to_row
from cobra.preprocessing.progress import track_items
from cobra.util.jsonl import to_json
from cobra.util.printable import printable

# Rows that are named, of each defect.
_SHOWN = 3
_CHARACTERS = 300


@dataclass
class Sifted:
    """Outcome of the pass."""

    read: int = 0
    taken: int = 0
    converted: int = 0
    """Rows taken that training reads once they are written, and not as they were brought."""
    refused: Counter[Defect] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    """The first rows of each defect, with the finding."""


def sift(source: Source, question: str, target: Path) -> Sifted:
    """Write the rows that training takes to `target`, as JSON lines; one row is in memory at a time.

    Args:
        source: The data.
        question: Question of rows that have an answer alone.
        target: The file to write.

    Raises:
        UserError: The data are not of their form: see :meth:`cobra.preprocessing.forms.records.Source.records`.
    """
    sifted = Sifted()
    with target.open("wb") as file:
        for record in track_items(source.records(), f"Reading {source.path.name}"):
            sifted.read += 1
            try:
                row = to_row(record, question)
                image = check_form(row)
                if len(row["conversations"]) < 2:
                    raise RowError(Defect.NO_ANSWER, "has a question and no answer")
                line = to_json(with_image(row, image))
                if len(line) > MAX_ROW_BYTES:
                    raise RowError(Defect.MALFORMED, f"has {len(line):,} bytes, more than {MAX_ROW_BYTES:,}")
            except RowError as error:
                sifted.refused[error.defect] += 1
                if sifted.refused[error.defect] <= _SHOWN:
                    sifted.named.append(printable(f"{record.name} {error.detail}", _CHARACTERS))
                continue
            sifted.taken += 1
            sifted.converted += source.form in (Form.TABLE, Form.FOLDER) or (
                source.form is not Form.PACKED and form_of(record.value) is Form.FIELDS
            )
            file.write(line + b"\n")
    return sifted
