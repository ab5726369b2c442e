"""Response cache on disk, written as answers come, so that a killed run resumes where it was.

Each way of answering has a key: a hash of all that its answers depend on beside the image. Its answers are the lines of
`<key>.jsonl`, and of `<key>.rank<k>.jsonl` where there are several processes; `<key>.json` says what the key stands
for. A line is one answer: `image_id`, `image_sha256` (of the image's file, so that another image under the same id is
answered anew), `prompt`, `raw`, `analysis` and `problem`, as in :class:`cobra.evaluation.responses.protocol.Answer`.
What is scored is found in `raw` each time it is read.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobra.evaluation.data.captioned_image import ImageId
from cobra.evaluation.responses.protocol import Answer
from cobra.util.errors import UserError
from cobra.util.files import write_json
from cobra.util.jsonl import append_lines, cut_torn_line, read_log

# Counted up when the same settings would be answered otherwise by changed code.
_FORMAT = 1
_KEY_DIGITS = 16


@dataclass(frozen=True)
class StoredAnswer:
    """An answer, and which image it is about."""

    answer: Answer
    image_sha256: str
    """Digest of the image's file as it was; empty where there was none."""


class AnswerFile:
    """The answers with the same settings: all are read, and this process's are appended to a file of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int = 0) -> None:
        """Name the file; nothing is read or written.

        Args:
            folder: Folder of answers with any settings, made with the first one.
            settings: All that the answers depend on beside the image, as JSON values: the checkpoint's hash, the
                dtype, wordings, decoding.
            rank: Rank of the process; no two may write to one file.
        """
        self._settings = {"format": _FORMAT, **settings}
        self.key = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]
        self._folder = folder
        self._path = folder / f"{self.key}{f'.rank{rank}' if rank else ''}.jsonl"
        self._is_open = False

    def read(self) -> dict[ImageId, StoredAnswer]:
        """Return the answers of all processes by image; of several about one image the last.

        Lines that are not whole, as a killed run or a failing disk leaves them, are passed over.
        """
        paths = [self._folder / f"{self.key}.jsonl", *sorted(self._folder.glob(f"{self.key}.rank*.jsonl"))]
        values = (value for path in paths if path.is_file() for _, value in read_log(path))
        return {stored.answer.image_id: stored for stored in map(_parse, values) if stored is not None}

    def append(self, answers: Iterable[StoredAnswer]) -> None:
        """Write answers, all of them or none, and hand them to the system at once: a process may be killed any time.

        Raises:
            UserError: The disk is full or not to be written to.
        """
        try:
            if not self._is_open:
                # Saying what the key stands for, and cutting off a line that a killed run has not finished.
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(self._folder / f"{self.key}.json", self._settings)
                cut_torn_line(self._path)
                self._is_open = True
            append_lines(self._path, map(_to_values, answers))
        except OSError as error:
            raise UserError(
                f"answers cannot be written to {self._path} ({error.strerror}): mend that, and run the same command "
                "again; the answers that are there are kept"
            ) from error


def _to_values(stored: StoredAnswer) -> dict[str, Any]:
    texts = {name: getattr(stored.answer, name) for name in ("prompt", "raw", "analysis", "problem")}
    return {"image_id": stored.answer.image_id, "image_sha256": stored.image_sha256, **texts}


def _parse(values: Any) -> StoredAnswer | None:
    """Return the answer in a line's value; None where it is not one, whatever it is."""
    match values:
        case {
            "image_id": int() | str() as image_id,
            "image_sha256": str(sha256),
            "prompt": str(prompt),
            "raw": str(raw),
            "analysis": str() | None as analysis,
            "problem": str() | None as problem,
        } if not isinstance(image_id, bool):
            return StoredAnswer(Answer.from_text(image_id, prompt, raw, analysis, problem), sha256)
    return None
