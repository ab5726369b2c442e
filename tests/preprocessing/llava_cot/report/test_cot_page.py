"""The page: complete, safe whatever the rows hold, and the same each time."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_publication import ANSWER, picture, turns

from cobra.preprocessing.archives import Refusal
from cobra.preprocessing.datasets.rows import Defect
from cobra.preprocessing.llava_cot.archive.unpack import Unpacked
from cobra.preprocessing.llava_cot.report.counts import Report
from cobra.preprocessing.llava_cot.report.page import render_page
from cobra.preprocessing.llava_cot.report.token_counts import BIN_EDGES, TokenCounts
from cobra.preprocessing.llava_cot.rows.raw_row import Row
from cobra.util.printable import printable

FULL = ANSWER.format("red", "because", "A")
VOID = {"meta", "img"}
# In the page of `report_of()`, without a picture.
PARTS = {"section": 9, "article": 2, "details": 13, "img": 0, "li": 3}
HOSTILE = [
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "</p></article></section></style><style>*{display:none}",
    "{{ report }} {% raw %} &amp; &#x3c;b&#x3e; <!-- ]]>",
    "\u202egnp.exe\u2066 \u200f left",
    "\x00\x08\x1b[2J\x7f\x85\ufffe\U0001ffff\ud800",
    "w" * 5000,
    "Z\u0351\u036b\u0343" * 200,
]


class Page(HTMLParser):
    """The tags of a page, its text, and its attributes; fails where tags do not match."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.attributes, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def tokens(**changes):
    rows = [0] * len(BIN_EDGES)
    rows[3], rows[20] = 7, 2
    values = {
        "llm_backbone_id": "mamba-2.8b-zephyr",
        "tokenizer": "some/tokenizer",
        "llm_max_length": 2048,
        "rows": 9,
        "total": 9000,
        "mean": 1000.0,
        "median": 450,
        "p95": 2600,
        "max": 2700,
        "longer": 2,
        "conclusion_cut": 2,
        "longer_by_source": {"coco": 2},
        "conclusion_cut_by_source": {"coco": 2},
        "bin_edges": BIN_EDGES,
        "bin_rows": tuple(rows),
    }
    return TokenCounts(**{**values, **changes})


def report_of(text="x", image="coco/train2017/1.jpg"):
    """A report with everything in it, and one text wherever a text can come from outside."""
    report = Report(rows_read=1234, duplicate_ids=3, missing_images=1)
    answers = [FULL.replace("because", text.replace("<", "&lt;")), f"raw {text}", FULL, FULL]
    texts = [part for answer in answers for part in (text, answer)]
    report.count_row(Row(text, image, turns(*texts), False), text)
    report.count_row(Row(2, None, turns("Q?", FULL), False), "(text only)")
    report.count_row(Row(3, image, turns("Q?", FULL), False), "coco", held_out=True)
    report.count_left_out("sqa")
    report.count_rejected(Defect.NO_ANSWER, text, {"line": 5, "id": text, "reason": text})
    report.archive = Unpacked(text, 7, 1, 2, [Refusal(text, text)], [Refusal(text, text)])
    report.tokens = tokens(tokenizer=text)
    return report


def test_page_tells_the_numbers(tmp_path):
    words = Page(render_page(report_of(), tmp_path)).words()
    for expected in (
        "rows read 1,234",
        "training rows 2",
        "held out 1",
        "held-out rows",
        "2 rows lose",
        "cut at 2,048",
    ):
        assert expected in words, expected
    for section in ("Rows by source", "Questions in a row", "Answers", "Tokens in a row", "Defects", "COCO images"):
        assert section in words, section
    assert "no answer: the first 1 of 1" in words and "and 1 more question" in words
    assert words.count("apache-2.0") == 1


def test_page_asks_nothing_of_the_network_and_runs_nothing(tmp_path):
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/1.jpg").write_bytes(picture("1.jpg", "red"))
    html = render_page(report_of(), tmp_path)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert sources and all(value.startswith(("#", "data:image/jpeg;base64,")) for value in sources)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    # Every place that the page leads to is there, once.
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_text(tmp_path, text):
    plain, hostile = Page(render_page(report_of(), tmp_path)), Page(render_page(report_of(text), tmp_path))
    # The order of the sources is that of their names.
    assert Counter(hostile.tags) == Counter(plain.tags)
    assert Counter(found[:2] for found in hostile.attributes) == Counter(found[:2] for found in plain.attributes)
    assert printable(text, 80) in "".join(hostile.text)
    (tmp_path / "report.html").write_text(render_page(report_of(text), tmp_path), encoding="utf-8")
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", written)
    assert len(written) < 200_000


@settings(deadline=None, max_examples=30)
@given(st.text(st.characters(), min_size=1).filter(str.strip))
def test_any_text_leaves_the_page_whole(tmp_path_factory, text):
    html = render_page(report_of(text), tmp_path_factory.getbasetemp())
    html.encode("utf-8")
    found = Counter(Page(html).tags)
    assert {tag: found[tag] for tag in ("section", "article", "details", "img", "li")} == PARTS


@pytest.mark.fault("E5")
def test_the_page_begins_with_the_story_and_rows_and_ends_with_the_next_command(tmp_path):
    words = Page(render_page(report_of(), tmp_path)).words()
    assert (
        "1,234 rows read: 2 for training, 1 held out, 1 left out by the flags, 1 rejected. 83.3 % of 6 answers have "
        "all four stages in order. 2 rows lose a CONCLUSION, or a part of one, where training cuts at 2,048 tokens."
    ) in words
    assert words.index("2 of the training rows") < words.index("rows read 1,234")
    assert "--pretrained_checkpoint cobra+3b" in words.split("Licence")[-1]


@pytest.mark.fault("E6")
def test_conclusions_are_open_and_the_way_to_them_is_folded(tmp_path):
    html = render_page(report_of(), tmp_path)
    opened = re.sub(r"<details.*?</details>", "", html, flags=re.S)
    assert opened.count('<p class="name">CONCLUSION</p>') == html.count("CONCLUSION</p>") == 3
    assert "<summary>REASONING</summary>" in html and "REASONING</summary>" not in opened
    # An answer without stages is shown as it is: no fault is found in it.
    assert "raw x" in opened and "without tags" not in opened.split('id="rows"')[1].split("</section>")[0]


def test_empty_report_has_a_page(tmp_path):
    words = Page(render_page(Report(), tmp_path)).words()
    assert "rows read 0" in words and "No row was rejected." in words and "There is no training row." in words


def test_page_says_in_words_that_tokens_were_not_counted(tmp_path):
    report = report_of()
    report.tokens, report.tokens_missing = None, "the hub <is> away"
    words = Page(render_page(report, tmp_path)).words()
    assert "The tokens are not known: the hub <is> away ." in words
    assert "tokens not counted" in words and "python fine_tune/prepare_llava_cot.py" in words


@pytest.mark.parametrize(("limit", "left"), [(512, "12.12"), (2048, "48.48"), (4096, "96.97"), (10_000, "100.00")])
def test_mark_of_the_limit_stands_at_its_place(tmp_path, limit, left):
    report = report_of()
    report.tokens = tokens(llm_max_length=limit)
    found = re.search(r'<span class="limit[^"]*" style="left:([0-9.]+)%"', render_page(report, tmp_path))
    assert found[1] == left


def test_pictures_are_small_and_inside(tmp_path):
    (tmp_path / "a").mkdir()
    Image.effect_noise((900, 600), 50).convert("RGBA").save(tmp_path / "a" / "1.png")
    html = render_page(report_of(image="a/1.png"), tmp_path)
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)" width="280" height="187"', html)
    assert len(data) == 1
    with Image.open(io.BytesIO(base64.b64decode(data[0]))) as image:
        assert image.format == "JPEG" and image.size == (280, 187)


def test_pictures_that_cannot_be_shown_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(picture("a.png", "red")[:200])
    (tmp_path / "a" / "text.png").write_text("%!PS")
    side = 5001
    Image.new("1", (side, side)).save(tmp_path / "a" / "big.png")
    for name in ("broken.png", "text.png", "absent.png"):
        assert "The picture cannot be read." in render_page(report_of(image=f"a/{name}"), tmp_path)
    assert f"{side:,} x {side:,} pixels" in render_page(report_of(image="a/big.png"), tmp_path)


def test_many_sources_questions_and_members_are_bounded(tmp_path):
    report = Report()
    for number in range(200):
        report.count_row(Row(number, "a/b.png", turns(*["Q?", "A"] * (number % 30 + 1)), False), f"source {number}")
    report.archive = Unpacked("", 0, 0, 0, [Refusal(f"m{number}", "r") for number in range(5000)])
    words = Page(render_page(report, tmp_path)).words()
    assert "170 smaller sources" in words and "more than 20" in words and "6 to 10" in words
    assert "And 4,900 more." in words and words.count("Q?") < 200


def test_equal_reports_give_equal_bytes(tmp_path):
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/1.jpg").write_bytes(picture("1.jpg", "red"))
    pages = []
    for new in (0, 99):
        report = report_of()
        report.archive.new = new
        pages.append(render_page(report, tmp_path))
    assert pages[0] == pages[1]
