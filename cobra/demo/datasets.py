"""Writers of the demonstration's data sets, each in the published form of the data set that it stands in for.

LLaVA-CoT-100k: https://huggingface.co/datasets/Xkev/LLaVA-CoT-100k (`train.jsonl`, `image.zip.part-aa` and on).
COCO captions: https://cocodataset.org/#format-data (section Image Captioning). LLaVA rows: a JSON list.
"""

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cobra.demo.captions import canonical_caption, reference_captions
from cobra.demo.places import ask_places
from cobra.demo.questions import CAPTION_PROMPTS, KINDS, RELATIONS, Exchange, ask
from cobra.demo.scenes import IMAGE_PX, MAX_OBJECTS, Scene, Split, random_scene, render
from cobra.preprocessing.progress import track_items
from cobra.util.files import atomic_path, write_json, write_text

Row = dict[str, Any]

# Image paths as the ten merged sources of LLaVA-CoT-100k word them; the suffix is the format of the bytes. COCO ids
# start at 100001, the held-out images' at 1.
SOURCES = (
    "chartqa/train/png/two_col_{}.png",
    "sqa/train/{}/image.png",
    "geoqa+/images/{}.png",
    "coco/train2017/{:012d}.jpg",
    "vg/VG_100K/{}.jpg",
)
_FIRST_IMAGE_NUMBER = 100_001
# One row in a hundred has a second question: a batch is padded to its longest row, and with one in six more than a
# third of all positions were padding.
_TWO_TURN_SHARE = 1 / 100
# Relations are twice as frequent as kinds that need one object only.
_TRAINING_KINDS = (*KINDS, *RELATIONS)
# How often a scene of one object, where there is nothing to look up, is drawn again for a question about places.
_REDRAWN_SHARE = 0.7
# Where the zip is cut, as shares of its size: in the middle of members, as `split -b` would.
_CUTS = (0.37, 0.71)
_DEFECTS = (
    "dangling turn",
    "untagged answer",
    "unclosed conclusion",
    "missing image",
    "unreadable image",
    "duplicate row",
    "surviving <image>",
)
_ROWS_PER_DEFECT = 3


@dataclass(frozen=True)
class LlavaCotSummary:
    """Files and counts that :func:`write_llava_cot` wrote."""

    rows: int
    """Lines of `train.jsonl`."""
    images: int
    """Members of the zip."""
    parts: tuple[Path, ...]
    """The pieces of the zip, in order."""
    defects: dict[str, int]
    """Kind of defect to the number of rows that have it; no row has two."""


def write_llava_cot(
    folder: Path | str, n_rows: int, seed: int, kinds: Sequence[str] = _TRAINING_KINDS
) -> LlavaCotSummary:
    """Write training rows in the published form of LLaVA-CoT-100k: `train.jsonl` and `image.zip.part-aa`, -ab, -ac.

    A few rows carry the defects that are known of the original, so that preparing the data has something to report.
    `n_rows` is their number before a few of them are repeated; at least 50, so that the defects stay few. `kinds` are
    those of the questions, drawn with equal chances, so that one named twice comes twice as often; see :func:`ask`.
    """
    folder = Path(folder)
    rng = random.Random(f"llava-cot {seed}")
    defective = rng.sample(range(n_rows), _ROWS_PER_DEFECT * len(_DEFECTS))
    defects = {index: _DEFECTS[position % len(_DEFECTS)] for position, index in enumerate(defective)}
    lines: list[str] = []
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for index in _progress(n_rows, "LLaVA-CoT rows"):
            scene, exchanges = _draw_conversation(rng, "train", kinds)
            number = _FIRST_IMAGE_NUMBER + index
            source = rng.randrange(len(SOURCES))
            turns = [turn for exchange in exchanges for turn in _turns(exchange.question, exchange.answer)]
            # Ids of both types occur where ten sources are merged.
            row_id = str(number) if source % 2 else number
            row: Row = {"id": row_id, "image": SOURCES[source].format(number), "conversations": turns}
            image = _encode(scene, row["image"])
            defect = defects.get(index)
            _spoil_conversation(turns, exchanges[-1], defect)
            if defect == "unreadable image":
                image = image[: len(image) // 2]
            if defect != "missing image":
                # A ZipInfo of its own leaves the clock out of the bytes.
                members.writestr(zipfile.ZipInfo(row["image"]), image)
            lines += [json.dumps(row)] * (2 if defect == "duplicate row" else 1)
        n_images = len(members.namelist())
    write_text(folder / "train.jsonl", "".join(f"{line}\n" for line in lines))
    parts = _write_parts(folder, archive.getvalue())
    return LlavaCotSummary(len(lines), n_images, parts, dict.fromkeys(_DEFECTS, _ROWS_PER_DEFECT))


def write_coco_captions(folder: Path | str, n_images: int, seed: int) -> tuple[Path, Path]:
    """Write held-out scenes with five captions each: a COCO file, `captions_val.json`, and a folder, `images`."""
    folder = Path(folder)
    rng = random.Random(f"coco captions {seed}")
    images: list[Row] = []
    annotations: list[Row] = []
    for image_id in _progress(n_images, "COCO captions", start=1):
        scene = random_scene(rng, "held-out")
        name = f"{image_id:012d}.png"
        _save(folder / "images" / name, scene)
        images.append({"id": image_id, "file_name": name, "width": IMAGE_PX, "height": IMAGE_PX})
        for caption in reference_captions(rng, scene):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption})
    path = folder / "captions_val.json"
    info = {"description": "Held-out rendered scenes of the cobra-vlm demonstration", "version": "1.0"}
    write_json(path, {"info": info, "licenses": [], "images": images, "annotations": annotations}, indent=None)
    return path, folder / "images"


def write_caption_rows(
    folder: Path | str, n_rows: int, seed: int, max_objects: int = MAX_OBJECTS, places_share: float = 0.0
) -> tuple[Path, Path]:
    """Write training scenes with their canonical captions as plain answers: what the shipped baseline learns from.

    A `places_share` of the rows asks where things are instead; see :func:`ask_places`.

    Returns:
        The LLaVA rows `rows.json` and the folder `images`, where `--dataset.type custom` looks for them.
    """
    rng = random.Random(f"captions {seed}")

    def draw(index: int) -> tuple[Scene, Row]:
        scene = random_scene(rng, "train", max_objects)
        asks_places = rng.random() < places_share
        if asks_places and len(scene.objects) == 1 and rng.random() < _REDRAWN_SHARE:
            scene = random_scene(rng, "train", max_objects)
        turn = ask_places(rng, scene) if asks_places else (rng.choice(CAPTION_PROMPTS), canonical_caption(scene))
        return scene, {"conversations": _turns(*turn)}

    return _write_rows(Path(folder), n_rows, "caption rows", draw)


def write_question_rows(
    folder: Path | str, n_rows: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[Path, Path]:
    """Write single questions about held-out scenes, every kind of question equally often, with four-stage answers.

    Returns:
        The LLaVA rows `rows.json`, with the further keys `kind` and `options` (see :class:`Exchange`), and the folder
        `images`.
    """
    rng = random.Random(f"questions {seed}")

    def draw(index: int) -> tuple[Scene, Row]:
        scene, exchange = _draw_question(rng, "held-out", kinds[index % len(kinds)])
        turns = _turns(exchange.question, exchange.answer)
        return scene, {"conversations": turns, "kind": exchange.kind, "options": list(exchange.options)}

    return _write_rows(Path(folder), n_rows, "held-out questions", draw)


def _write_rows(
    folder: Path, n_rows: int, description: str, draw: Callable[[int], tuple[Scene, Row]]
) -> tuple[Path, Path]:
    rows: list[Row] = []
    for index in _progress(n_rows, description):
        scene, row = draw(index)
        rows.append({"id": index, "image": f"{index:06d}.png"} | row)
        _save(folder / "images" / f"{index:06d}.png", scene)
    write_json(folder / "rows.json", rows, indent=None)
    return folder / "rows.json", folder / "images"


def _progress(count: int, description: str, start: int = 0) -> Iterator[int]:
    yield from track_items(range(start, start + count), f"Writing {description}")


def _draw_question(rng: random.Random, split: Split, kind: str) -> tuple[Scene, Exchange]:
    """Draw scenes until one has an answer to a question of the kind."""
    while True:
        scene = random_scene(rng, split)
        exchange = ask(rng, scene, kind)
        if exchange is not None:
            return scene, exchange


def _draw_conversation(rng: random.Random, split: Split, kinds: Sequence[str]) -> tuple[Scene, list[Exchange]]:
    """Draw a scene with one question, or two of different kinds."""
    scene, first = _draw_question(rng, split, rng.choice(kinds))
    exchanges = [first]
    if rng.random() < _TWO_TURN_SHARE:
        second = ask(rng, scene, rng.choice([kind for kind in kinds if kind != first.kind]))
        exchanges += [second] if second else []
    return scene, exchanges


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _spoil_conversation(turns: list[dict[str, str]], last: Exchange, defect: str | None) -> None:
    """Give a conversation one of the known defects, in place; `last` is its last exchange."""
    if defect == "dangling turn":
        turns.append({"from": "human", "value": "What else is there?"})
    elif defect == "untagged answer":
        turns[-1]["value"] = last.conclusion
    elif defect == "unclosed conclusion":
        turns[-1]["value"] = turns[-1]["value"].removesuffix(" </CONCLUSION>")
    elif defect == "surviving <image>":
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"


def _encode(scene: Scene, name: str) -> bytes:
    """Return a scene as a PNG or, for a name that ends in .jpg, a JPEG file."""
    buffer = io.BytesIO()
    if name.endswith(".jpg"):
        render(scene).save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def _save(path: Path, scene: Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encode(scene, path.name))


def _write_parts(folder: Path, archive: bytes) -> tuple[Path, ...]:
    """Cut a zip as `split` does: joining the parts' bytes in the order of their names gives it back."""
    bounds = [0, *(int(len(archive) * cut) for cut in _CUTS), len(archive)]
    parts = tuple(folder / f"image.zip.part-a{suffix}" for suffix in "abc")
    for part, (begin, end) in zip(parts, pairwise(bounds), strict=True):
        with atomic_path(part) as temporary:
            temporary.write_bytes(archive[begin:end])
    return parts
