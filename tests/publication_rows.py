"""Rows of a synthetic LLaVA-CoT-100k, and the numbers that preparing them must find.

The numbers are counted while the rows are made, by this module alone.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

# Path forms and shares of the published rows.
SOURCES = (
    ("coco/train2017/{:012d}.jpg", 409),
    ("chartqa/train/png/two_col_{}.png", 172),
    ("ai2d/images/{}.png", 114),
    ("geoqa+/images/{}.png", 114),
    ("sqa/train/{}/image.png", 56),
    ("docvqa/train/documents/{}.png", 40),
    ("vg/VG_100K/{}.jpg", 40),
    ("vg/VG_100K_2/{}.jpg", 23),
    ("pisc/image/{:05d}.jpg", 10),
    ("CLEVR_v1.0/images/train/CLEVR_train_{:06d}.png", 10),
    ("coco/val2017/{:012d}.jpg", 2),
)
STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
WORDS = "the picture shows a small red square left of two blue circles above one wide green line and seven dots".split()
# Far beyond any limit that a test sets; all other rows stay below 300 words.
LONG_WORDS = 3000
OVERLONG_BYTES = 16 * 2**20 + 100
Change = Callable[[dict], object]

# Numbers that no readable image has.
_BAD = 900_000


@dataclass(frozen=True)
class Shape:
    """How large the publication is, and how broken."""

    images: int = 20_000
    """Readable images."""
    rows: int = 30_000
    """Lines of train.jsonl."""
    planted: int = 5
    """How often each defect is there."""
    overlong: int = 1
    """Lines of more than 16 MiB."""
    parts: int = 16
    top: str = "images/"
    """Folder in front of the rows' paths in the archive; empty or with a slash at its end."""
    seed: int = 0


@dataclass
class Expected:
    """The numbers that a report must have, under its own names."""

    rows_read: int = 0
    usable: int = 0
    """Rows for training and holdout together, as all that follow."""
    dropped_turns: int = 0
    missing_images: int = 0
    unreadable_images: int = 0
    duplicate_ids: int = 0
    usable_by_source: Counter = field(default_factory=Counter)
    rejected_by_source: Counter = field(default_factory=Counter)
    rejected: Counter = field(default_factory=Counter)
    turns: Counter = field(default_factory=Counter)
    answers: int = 0
    valid_answers: int = 0
    untagged_answers: int = 0
    missing_stages: Counter = field(default_factory=Counter)
    form_problems: Counter = field(default_factory=Counter)
    long_rows: int = 0
    """Rows of more tokens than any model takes."""
    cut_conclusions: int = 0
    """Those of them that would lose their CONCLUSION."""
    coco_ids: dict = field(default_factory=lambda: {"train2017": set(), "val2017": set()})
    archive: dict = field(default_factory=dict)

    def counts(self) -> dict:
        """Those of the numbers that stand in report.json under the same names, as JSON has them."""
        found = {count.name: getattr(self, count.name) for count in fields(self)}
        for name in ("usable", "usable_by_source", "long_rows", "cut_conclusions", "coco_ids", "archive"):
            del found[name]
        return {
            name: {str(key): value[key] for key in sorted(value)} if isinstance(value, Counter) else value
            for name, value in found.items()
        }


@dataclass(frozen=True)
class Form:
    """A form of answers: made from the four stages, with what is wrong with it."""

    make: Callable[[list[str]], list[str]] = lambda stages: stages
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    untagged: bool = False
    long: bool = False
    cut: bool = False


def _long(stage: str) -> str:
    text = " ".join(WORDS * (LONG_WORDS // len(WORDS)))
    return f"<{stage}> {text} </{stage}>" if stage else text


WHOLE = Form()
FORMS = {
    "no summary": Form(lambda s: s[1:], ("summary",)),
    "no caption": Form(lambda s: [s[0], *s[2:]], ("caption",)),
    "no reasoning": Form(lambda s: [*s[:2], s[3]], ("reasoning",)),
    "conclusion only": Form(lambda s: s[3:], ("summary", "caption", "reasoning")),
    "no conclusion": Form(lambda s: s[:3], ("conclusion",)),
    "unclosed": Form(lambda s: [*s[:3], s[3].removesuffix("</CONCLUSION>")], problems=("unclosed stage",)),
    "out of order": Form(lambda s: [s[1], s[0], *s[2:]], problems=("stage out of order",)),
    "duplicated": Form(lambda s: [s[0], *s], problems=("duplicated stage",)),
    "empty": Form(lambda s: [s[0], "<CAPTION>  </CAPTION>", *s[2:]], problems=("empty stage",)),
    "text before": Form(lambda s: ["Let me see.", *s], problems=("text outside the stages",)),
    "long text after": Form(lambda s: [*s, _long("")], problems=("text outside the stages",), long=True),
    "stray closing": Form(lambda s: [*s, "</SUMMARY>"], problems=("stray closing tag",)),
    "no spaces": Form(lambda s: ["".join(s).replace("> ", ">").replace(" <", "<")]),
    "untagged": Form(lambda s: ["The answer is B."], untagged=True),
    "conclusion cut": Form(lambda s: [*s[:2], _long("REASONING"), s[3]], long=True, cut=True),
}

# Rows that are odd and usable; each changes a sound row in place.
ODD: dict[str, Change] = {
    "dangling question": lambda row: row["conversations"].append({"from": "human", "value": "And then?"}),
    "large id": lambda row: row.update(id=10**18 + row["id"]),
    "text as id": lambda row: row.update(id=f"coco/{row['id']}"),
    "no id": lambda row: row.pop("id"),
    "image tag first": lambda row: row["conversations"][0].update(value="<image>\n" + row["conversations"][0]["value"]),
    "image tag last": lambda row: row["conversations"][0].update(value=row["conversations"][0]["value"] + "\n<image>"),
    "dotted path": lambda row: row.update(image="./" + row["image"]),
    "more keys": lambda row: row.update(width=640, source={"name": "x"}),
    "text only": lambda row: row.pop("image"),
    "accents": lambda row: row["conversations"][0].update(value=f"O\u00f9 est le carr\u00e9 \U0001f7e5 {row['id']}?"),
}

# Rows and lines that are rejected: the reason, and the change to a sound row, or bytes in place of it.
REJECTED: dict[str, tuple[str, Change]] = {
    "torn": ("malformed line", lambda row: json.dumps(row).encode()[:-9]),
    "not UTF-8": ("malformed line", lambda row: json.dumps(row).encode().replace(b"SUMMARY", b"\xff\xfe", 1)),
    "list": ("malformed line", lambda row: json.dumps([row]).encode()),
    "number": ("malformed line", lambda row: b"7"),
    "nested": ("malformed line", lambda row: b"[" * 50_000),
    "lone surrogate": ("malformed line", lambda row: row["conversations"][1].update(value="\ud800")),
    "no key": ("no conversations", lambda row: row.pop("conversations")),
    "no turns": ("no conversations", lambda row: row.update(conversations=[])),
    "turns are text": ("no conversations", lambda row: row.update(conversations="text")),
    "turn is text": ("bad turn", lambda row: row["conversations"].append("text")),
    "turn without value": ("bad turn", lambda row: row["conversations"][1].pop("value")),
    "value is a number": ("bad turn", lambda row: row["conversations"][0].update(value=7)),
    "answer first": ("role out of order", lambda row: row["conversations"].reverse()),
    "question twice": ("role out of order", lambda row: row["conversations"].insert(0, row["conversations"][0])),
    "unknown role": ("role out of order", lambda row: row["conversations"][1].update({"from": "system"})),
    "question only": ("no answer", lambda row: row.update(conversations=row["conversations"][:1])),
    "blank answer": ("no answer", lambda row: row["conversations"][1].update(value=" \n")),
    "no path": ("bad image path", lambda row: row.update(image=["a.png", "b.png"])),
    "path is a number": ("bad image path", lambda row: row.update(image=7)),
    "path in an object": ("bad image path", lambda row: row.update(image={"path": "a.png"})),
    "absolute path": ("bad image path", lambda row: row.update(image="/etc/passwd")),
    "drive": ("bad image path", lambda row: row.update(image="C:\\images\\1.png")),
    "path leads out": ("bad image path", lambda row: row.update(image="sqa/../../outside.png")),
}
# Rows that repeat an earlier one: by id, image and conversations, whatever other keys and ./ they have.
DUPLICATES: dict[str, Change] = {
    "same": lambda row: None,
    "other spelling": lambda row: row.update(image="./" + row["image"], note="again"),
}
# Rows whose image is broken: the reason, and the form of its path, which no readable image has.
BAD_IMAGES = {
    "missing": ("missing image", "sqa/train/{}/image.png"),
    "damaged": ("missing image", "geoqa+/images/{}.png"),
    "truncated": ("unreadable image", "coco/train2017/{:012d}.jpg"),
    "text": ("unreadable image", "chartqa/train/png/two_col_{}.png"),
    "empty": ("unreadable image", "ai2d/images/{}.png"),
}


def image_paths(count: int) -> list[str]:
    """`count` different paths in the published proportions."""
    total = sum(share for _, share in SOURCES)
    numbers = {form: max(1, count * share // total) for form, share in SOURCES[1:]}
    numbers[SOURCES[0][0]] = count - sum(numbers.values())
    return [form.format(number) for form, most in numbers.items() for number in range(1, most + 1)]


class Rows:
    """Makes the lines and counts what they must lead to."""

    def __init__(self, shape: Shape, paths: Sequence[str]) -> None:
        self.expected = Expected()
        self.bad_images: dict[str, str] = {}
        """Path -> key of BAD_IMAGES: what the archive must hold broken, or not hold."""
        self._shape = shape
        self._paths = paths
        self._random = random.Random(shape.seed)
        self._number = 0
        self._earlier: list[dict] = []
        self._broken: Counter[str] = Counter()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, without line ends: a fifth of the sound rows, then all others in random order."""
        kinds = [(self._use, {"form": form}) for form in FORMS.values()]
        kinds += [(self._use, {"change": change}) for change in ODD.values()]
        kinds += [(self._reject, {"defect": defect, "change": change}) for defect, change in REJECTED.values()]
        kinds += [(self._repeat, {"change": change}) for change in DUPLICATES.values()]
        kinds += [(self._break_image, {"how": how}) for how in BAD_IMAGES]
        plan = (kinds + [(self._reuse_id, {})]) * self._shape.planted + [(self._overlong, {})] * self._shape.overlong
        sound = self._shape.rows - len(plan)
        if sound < len(plan):
            raise ValueError(f"{self._shape.rows} rows cannot hold {len(plan)} defects and as many sound rows")
        first = sound // 5
        plan += [(self._use, {})] * (sound - first)
        self._random.shuffle(plan)
        for make, arguments in [(self._use, {})] * first + plan:
            self.expected.rows_read += 1
            yield make(**arguments)

    def _new_row(self, form: Form) -> dict:
        """A row of one turn, each tenth of several, with the next image or one that was used before."""
        number, draw = self._number, self._random
        self._number += 1
        path = self._paths[number] if number < len(self._paths) else draw.choice(self._paths)
        turns = []
        for turn in range(2 + number % 3 if form is WHOLE and number % 10 == 0 else 1):
            texts = [" ".join(draw.choices(WORDS, k=draw.randrange(5, 15))) for _ in STAGES[:3]]
            stages = [f"<{stage}> {text} </{stage}>" for stage, text in zip(STAGES, [*texts, "B"], strict=True)]
            turns.append({"from": "human", "value": f"Question {number}.{turn}: which of these?\nA. one\nB. two"})
            turns.append({"from": "gpt", "value": "\n\n".join(form.make(stages))})
        return {"id": number, "image": path, "conversations": turns}

    def _use(self, form: Form = WHOLE, change: Change | None = None) -> bytes:
        """Make and count a usable row."""
        row, expected = self._new_row(form), self.expected
        if change is not None:
            change(row)
        elif form is WHOLE and len(self._earlier) < 10 * self._shape.planted:
            self._earlier.append(row)
        questions, dangling = divmod(len(row["conversations"]), 2)
        expected.usable += 1
        expected.dropped_turns += dangling
        expected.usable_by_source[_source(row)] += 1
        expected.turns[questions] += 1
        expected.answers += questions
        expected.untagged_answers += form.untagged
        expected.valid_answers += questions * (not (form.missing or form.problems or form.untagged))
        expected.missing_stages.update(form.missing)
        expected.form_problems.update(form.problems)
        expected.long_rows += form.long
        expected.cut_conclusions += form.cut
        folder, _, name = row.get("image", "").removeprefix("./").rpartition("/")
        if folder.startswith("coco/"):
            expected.coco_ids[folder.removeprefix("coco/")].add(int(name.removesuffix(".jpg")))
        return json.dumps(row).encode()

    def _reuse_id(self) -> bytes:
        self.expected.duplicate_ids += 1
        row_id = self._random.choice(self._earlier)["id"]
        return self._use(change=lambda row: row.update(id=row_id))

    def _reject(self, defect: str, change: Change) -> bytes:
        row = self._new_row(WHOLE)
        line = change(row)
        return self._count_rejected(defect, row, line if isinstance(line, bytes) else None)

    def _repeat(self, change: Change) -> bytes:
        row = dict(self._random.choice(self._earlier))
        change(row)
        return self._count_rejected("duplicate", row)

    def _break_image(self, how: str) -> bytes:
        defect, form = BAD_IMAGES[how]
        row = self._new_row(WHOLE)
        # Two rows share a missing image: rows and images are counted apart.
        path = form.format(_BAD + self._broken[how] // (2 if how == "missing" else 1))
        self._broken[how] += 1
        row["image"] = path
        self.bad_images[path] = how
        return self._count_rejected(defect, row)

    def _overlong(self) -> bytes:
        return self._count_rejected("malformed line", {}, b" " * OVERLONG_BYTES + b"{}")

    def _count_rejected(self, defect: str, row: dict, line: bytes | None = None) -> bytes:
        self.expected.rejected[defect] += 1
        self.expected.rejected_by_source[_source(row) if line is None else "(malformed line)"] += 1
        return json.dumps(row).encode() if line is None else line


def _source(row: dict) -> str:
    if "image" not in row:
        return "(text only)"
    first, slash, _ = str(row["image"]).removeprefix("./").removeprefix("/").partition("/")
    return first if first and slash else "(no folder)"
