"""The page of answers: newest first, pictures inside, and safe whatever the rows and the model have written."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch import picture

from cobra.training.samples import SampledRow, SampleLog, structure
from cobra.util.printable import printable

COT = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"
HOSTILE = [
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "</p></article></section></style><style>*{display:none}",
    "{{ rows }} {% raw %} &amp; <!-- ]]>",
    "<SUMMARY><b>x</b><CONCLUSION></details></CONCLUSION>",
    "a\u202eb\u2066c\x00d\x85e\r\nf\ufffeg",
]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Counts elements, and checks that each is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make_rows(text: str = "What is it?") -> list[SampledRow]:
    return [
        SampledRow(4, text, "a/4.png", text, COT.format(text)),
        SampledRow(9, 9, None, "And this?", "plain " + text),
        SampledRow(11, None, "a/absent.png", text, text),
    ]


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "a").mkdir()
    picture(1).save(tmp_path / "a" / "4.png")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def page_of(run_dir) -> str:
    return (run_dir / "samples.html").read_text(encoding="utf-8")


def test_structure_counts_what_can_be_compared():
    answered = [
        (COT.format("A"), COT.format("A"), "?"),
        (COT.format("A"), COT.format("B"), "?"),
        (COT.format("A"), "A", "?"),
        ("A", COT.format("A"), "?"),
        ("<CONCLUSION>\nB ", COT.format("B"), "?"),
        (COT.format("a"), COT.format("A"), "?"),
    ]
    # The case of letters does not matter.
    assert structure(answered) == (6, 4, 4, 3)
    assert structure([]) == (0, 0, 0, 0)


@pytest.mark.fault("D3")
def test_an_options_words_are_right_where_the_question_lists_it():
    answered = (COT.format("red"), COT.format("A"))
    assert structure([(*answered, "Which colour?\nA. red\nB. blue")]) == (1, 1, 1, 1)
    assert structure([(*answered, "Which colour?")]) == (1, 1, 1, 0)


def test_lines_and_page_hold_every_answer(run_dir):
    log = SampleLog(make_rows(), run_dir.parent)
    log.write(run_dir, 500, [COT.format("A"), "plain", ""])
    log.write(run_dir, 1000, [COT.format("What is it?"), "<CAPTION> c", "other"])
    lines = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["row"], line["id"]) for line in lines] == [
        (step, row, row_id) for step in (500, 1000) for row, row_id in ((4, "What is it?"), (9, 9), (11, None))
    ]
    assert lines[3]["answer"] == COT.format("What is it?") and lines[4]["reference"] == "plain What is it?"
    html = page_of(run_dir)
    words = " ".join(" ".join(Page(html).text).split())
    assert "Step Answers Valid stages Same conclusion 1,000 3 1 1 of 1 500 3 1 0 of 1" in words
    # Of every row the newest answer is open, and it stands above the older one.
    assert html.count('<details class="answer" open>') == 3
    for article in re.findall(r"<article>.*?</article>", html, re.S):
        assert article.index("step 1,000") < article.index("step 500")
    assert html.count("data:image/jpeg;base64,") == 1 and "The picture cannot be read." in html
    assert "without SUMMARY, without REASONING, without CONCLUSION, unclosed stage" in html


def test_page_shows_the_last_ten_and_the_file_has_all(run_dir):
    log = SampleLog(make_rows()[:1], run_dir.parent)
    for step in range(100, 1500, 100):
        log.write(run_dir, step, [f"answer of {step}"])
    html = page_of(run_dir)
    assert [int(step) for step in re.findall(r"answer of (\d+)", html)] == list(range(1400, 400, -100))
    assert html.count("data:image/jpeg;base64,") == 1
    assert len((run_dir / "samples.jsonl").read_text().splitlines()) == 14
    # A later start, of which the first file is cut back, goes on with the same page.
    later = SampleLog(make_rows()[:1], run_dir.parent)
    later.cut_back(run_dir, 1200)
    later.write(run_dir, 1250, ["answer of 1250"])
    assert [int(step) for step in re.findall(r"answer of (\d+)", page_of(run_dir))] == [1250, *range(1200, 300, -100)]


def test_a_start_that_asks_about_other_rows_shows_those(run_dir):
    SampleLog(make_rows()[:2], run_dir.parent).write(run_dir, 1, ["first", "second"])
    SampleLog(make_rows()[1:], run_dir.parent).write(run_dir, 2, ["third", "fourth"])
    html = page_of(run_dir)
    assert [word for word in ("first", "second", "third", "fourth") if f"<bdi>{word}</bdi>" in html] == [
        "second",
        "third",
        "fourth",
    ]


def test_cutting_back_needs_no_file(tmp_path):
    SampleLog([], tmp_path).cut_back(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_page_asks_nothing_of_the_network_and_runs_nothing(run_dir):
    SampleLog(make_rows(), run_dir.parent).write(run_dir, 1, [COT.format("A")] * 3)
    html = page_of(run_dir)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert sources and all(value.startswith(("#", "data:image/jpeg;base64,")) for value in sources)
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_text(run_dir, text):
    plain = SampleLog(make_rows(), run_dir.parent)
    plain.write(run_dir, 1, ["plain", "plain", COT.format("A")])
    expected = Page(page_of(run_dir))
    rows = [row if row.row == 9 else SampledRow(row.row, text, row.image, text, row.reference) for row in make_rows()]
    untagged = text.replace("SUMMARY", "").replace("CONCLUSION", "")
    SampleLog(rows, run_dir.parent).write(run_dir, 1, ["x" + untagged, "x" + untagged, COT.format(untagged)])
    found = Page(page_of(run_dir))
    assert Counter(found.tags) == Counter(expected.tags)
    assert Counter(one[:2] for one in found.attributes) == Counter(one[:2] for one in expected.attributes)
    assert printable(text, 80) in "".join(found.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", page_of(run_dir))


@settings(deadline=None, max_examples=20)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_answer_leaves_file_and_page_whole(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    SampleLog(make_rows(), folder).write(folder, 1, [text, text[::-1], COT.format(text)])
    lines = (folder / "samples.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 4 and json.loads(lines[0])["answer"] == text
    assert Page(page_of(folder)).tags.count("article") == 3
