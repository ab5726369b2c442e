"""Flags of `cobra-vlm check`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class CheckConfig:
    """Look at every row and image before a GPU is rented, and write rows from tables, messages and captioned images."""

    data: Path = Path()
    """Folder with rows.json and images/, a file of rows (JSON, JSON lines, CSV or TSV), or a folder of images with a
    text file each."""
    images: Path | None = None
    """Folder that the images' paths are relative to; null looks for them beside the rows."""
    write: Path | None = None
    """Also write the rows that training takes, in LLaVA's format: a JSON list, or JSON lines where it ends so."""
    question: str = "Describe the image."
    """Question of rows that have an answer alone, such as captions."""
    model: str = "cobra+3b"
    """Model to train: its tokenizer, longest text and batch."""
    coco_annotations: Path | None = None
    """Captions of an evaluation, whose photos are looked for among the rows; null takes COCO's where they are here."""
    holdout: Path | None = None
    """Held-out rows, with paths in the same image folder; their images and questions are looked for among the rows."""
    num_workers: int | None = None
    """Processes that open images; null takes the cores at hand."""
    json: bool = False
    """Print one JSON object in place of lines."""
