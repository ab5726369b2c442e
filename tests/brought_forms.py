"""Rows in LLaVA's format, written in the forms of other trainers and of the hub."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

ROLES = {"human": "user", "gpt": "assistant"}
TURNS = [{"from": datasets.Value("string"), "value": datasets.Value("string")}]


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns with a text as content; `<image>` stays in it."""
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]


def parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns with typed parts as content, the image first."""
    turns = []
    for turn in row["conversations"]:
        text = turn["value"].removeprefix("<image>").strip()
        image = [{"type": "image"}] if "<image>" in turn["value"] else []
        turns.append({"role": ROLES[turn["from"]], "content": [*image, {"type": "text", "text": text}]})
    return turns


def _without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _images(row: dict[str, Any]) -> dict[str, Any]:
    return {"images": [row["image"]]} if "image" in row else {}


def messages_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """TRL, LLaMA-Factory and ms-swift."""
    lines = [_without(row, "conversations", "image") | _images(row) | {"messages": messages(row)} for row in rows]
    return _json(folder / "messages.jsonl", lines)


def parts_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """TRL with typed parts."""
    lines = [_without(row, "conversations", "image") | _images(row) | {"messages": parts(row)} for row in rows]
    return _json(folder / "parts.jsonl", lines)


def prompt_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """TRL's prompt and completion."""
    lines = []
    for row in rows:
        turns = messages(row)
        halves = {"prompt": turns[:-1], "completion": turns[-1:]}
        lines.append(_without(row, "conversations", "image") | _images(row) | halves)
    return _json(folder / "prompt.jsonl", lines)


def sharegpt_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A list of sharegpt rows, with `images`."""
    lines = [_without(row, "image") | _images(row) for row in rows]
    path = folder / "sharegpt.json"
    path.write_text(json.dumps(lines))
    return path


def packed_set(folder: Path, rows: list[dict[str, Any]], image_folder: Path) -> "datasets.Dataset":
    """A data set with the images' bytes inside, as `datasets` makes one."""
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key != "image"}
    files = [image_folder / row["image"] if "image" in row else None for row in rows]
    columns["image"] = [
        None if file is None else {"bytes": file.read_bytes(), "path": row["image"]}
        for file, row in zip(files, rows, strict=True)
    ]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def parquet_file(folder: Path, rows: list[dict[str, Any]], image_folder: Path) -> Path:
    """One Parquet file of several row groups."""
    packed_set(folder, rows, image_folder).to_parquet(folder / "train.parquet", batch_size=3)
    return folder / "train.parquet"


def parquet_folder(folder: Path, rows: list[dict[str, Any]], image_folder: Path) -> Path:
    """Two Parquet files of messages, with lists of plain bytes for images."""
    target = folder / "train"
    target.mkdir()
    for part, begin in enumerate((0, len(rows) // 2)):
        chosen = rows[begin : len(rows) // 2 if part == 0 else None]
        images = [[(image_folder / row["image"]).read_bytes()] if "image" in row else [] for row in chosen]
        table = pa.table(
            {
                "id": [row["id"] for row in chosen],
                "messages": [messages(row) for row in chosen],
                "images": pa.array(images, pa.list_(pa.large_binary())),
            }
        )
        pq.write_table(table, target / f"train-{part:05d}-of-00002.parquet", row_group_size=2)
    return target


def saved_folder(folder: Path, rows: list[dict[str, Any]], image_folder: Path) -> Path:
    """A folder of `save_to_disk`, in two files."""
    packed_set(folder, rows, image_folder).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


JSON_FORMS = {
    "messages": messages_file,
    "parts": parts_file,
    "prompt and completion": prompt_file,
    "sharegpt": sharegpt_file,
}
PACKED_FORMS = {"parquet": parquet_file, "parquet folder": parquet_folder, "save_to_disk": saved_folder}


def write_form(form: str, folder: Path, rows: list[dict[str, Any]], image_folder: Path) -> Path:
    """Write rows in a form, images inside where the form has them; return what to train on."""
    if form in JSON_FORMS:
        return JSON_FORMS[form](folder, rows)
    return PACKED_FORMS[form](folder, rows, image_folder)
