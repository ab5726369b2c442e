"""The page of a run: what it says at every stage, within bounds, and safe whatever is written in the run's files."""

import json
import math
import re
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from html_page import HtmlPage
from made_run import COT, ROWS, make_run, write_answers, write_metrics

from cobra.training.page import run_page as module
from cobra.training.page.run_page import RunPage
from cobra.training.preemption import Stopped
from cobra.util.errors import UserError
from cobra.util.printable import printable

HOSTILE = [
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "</p></article></section></style></script><style>*{display:none}",
    "{{ rows }} {% raw %} &amp; <!-- ]]>",
    "<SUMMARY><b>x</b><CONCLUSION></details></CONCLUSION>",
    "a\u202eb\u2066c\x00d\x85e\r\nf\ufffeg",
]


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path)


def page_of(run_dir, end=None):
    RunPage(run_dir).write(end)
    return (run_dir / "run.html").read_text(encoding="utf-8")


def words_of(run_dir, end=None):
    return HtmlPage(page_of(run_dir, end)).words()


def hold(run_dir):
    (run_dir / "lock").write_text("{}")


def test_a_running_run(run_dir):
    hold(run_dir)
    words = words_of(run_dir)
    assert "Running : step 20 of 40, 0:00:40 left" in words and "Running since 2026-01-02 03:04 UTC" in words
    assert "No state is saved yet" in words and "resumes the run from" not in words
    assert "each step" in words and "mean of 128 steps" in words and "held-out rows 2.4980" in words
    assert "The best loss on held-out rows is 2.4980" in words
    for title in ("Learning rate", "Gradient norm", "Tokens a second", "Samples a second", "Memory in GB"):
        assert title in words
    assert "Model FLOPS utilisation" not in words
    assert "cobra+3b" in words and "98000" in words and '"finetune_learning_rate": 2e-05' in words


@pytest.mark.fault("E6")
def test_answers_are_open_and_right_and_wrong_ones_marked(run_dir):
    html = page_of(run_dir)
    articles = re.findall(r"<article>.*?</article>", html, re.S)
    assert len(articles) == 3 and html.count("data:image/jpeg;base64,") == 1
    first, second, third = (HtmlPage(article).words() for article in articles)
    # The newest is shown; the others wait for the slider.
    assert '<div class="answer" data-step="10" hidden>' in articles[0]
    assert '<div class="answer" data-step="20">' in articles[0]
    assert "What is it? answer after step 10 \u2713 right A blot answer after step 20 \u2713 right CONCLUSION" in first
    assert "reference CONCLUSION A blot" in first
    assert re.search(r"step 10 \u2717 wrong Yes. answer after step 20 \u2713 right No .*reference no", second)
    assert "right" not in third and "wrong" not in third and "The picture cannot be read." in third
    assert not re.search(r"<details[^>]*>\s*<summary>(CONCLUSION|the reference)", html)
    words = HtmlPage(html).words()
    assert "20: 2 of 2 right" in words
    assert (
        "Source Questions First Newest" in words and "all 2 50 % 100 %" in words and "(text only) 1 0 % 100 %" in words
    )


@pytest.mark.fault("E6")
def test_rows_without_stages_are_no_failure(run_dir):
    assert "without tags" not in page_of(run_dir)


def test_a_finished_run(run_dir):
    (run_dir / "finished.json").write_text("{}")
    hold(run_dir)
    words = words_of(run_dir)
    assert (
        "Finished : step 20 of 40" in words
        and "checkpoints/latest-checkpoint.pt" in words
        and "0:00:40 left" not in words
    )


def test_a_killed_run_says_how_to_resume_it(run_dir):
    (run_dir / "resume" / "step-000015").mkdir(parents=True)
    (run_dir / "resume" / "step-000015" / "state.json").write_text("{}")
    words = words_of(run_dir)
    assert "Interrupted : step 20 of 40" in words and "Last save of the state: step 15," in words
    assert "This command resumes the run at step 16" in words
    assert "python scripts/pretrain.py --run_id run --stage finetune" in words


def test_a_run_of_several_processes_is_resumed_by_torchrun(run_dir):
    record = json.loads((run_dir / "provenance.json").read_text()) | {"processes": 4}
    (run_dir / "provenance.json").write_text(json.dumps(record))
    assert "torchrun --standalone --nnodes 1 --nproc-per-node 4 scripts/pretrain.py --run_id run" in words_of(run_dir)


def test_a_run_of_ones_own_program_names_no_command(run_dir):
    record = json.loads((run_dir / "provenance.json").read_text()) | {"command": ["mine.py", "--x"]}
    (run_dir / "provenance.json").write_text(json.dumps(record))
    assert "The program that started the run resumes it from its beginning" in words_of(run_dir)


def test_a_run_that_is_stopped_in_order(run_dir):
    assert "Stopped by SIGTERM : step 20 of 40" in words_of(run_dir, Stopped("SIGTERM", 20))
    (run_dir / "stopped.json").write_text(json.dumps({"reason": "the time limit", "step": 20, "time": 0}))
    assert "Stopped by the time limit : step 20 of 40" in words_of(run_dir)


def test_a_run_that_an_error_ended(run_dir):
    hold(run_dir)
    words = words_of(run_dir, UserError("row 7 (id 'x') cannot be read: hf_" + "a" * 34))
    assert "Ended by an error : step 20 of 40 row 7 (id 'x') cannot be read: ***" in words


def test_a_resumed_run_counts_its_starts_and_is_made_anew_alike(run_dir):
    hold(run_dir)
    record = json.loads((run_dir / "provenance.json").read_text())
    record["resumed"] = [{"started": "2026-01-03T00:00:00+00:00", "command": ["cobra-vlm", "train"], "processes": 1}]
    (run_dir / "provenance.json").write_text(json.dumps(record))
    page = RunPage(run_dir)
    page.write()
    write_metrics(run_dir, 35, first=21)
    write_answers(run_dir, 30, ["x", "y", "z"])
    page.write()
    grown = (run_dir / "run.html").read_text()
    assert "Running since" in grown and "2026-01-03 00:00 UTC" in grown and "start 2 of this run" in grown
    assert "step 35 of 40" in HtmlPage(grown).words() and 'data-step="30"' in grown

    def lasting(html):
        return re.sub(r'data-written="[^"]*"|<time.*?</time>', "", html)

    assert lasting(page_of(run_dir)) == lasting(grown)


def test_before_the_first_step(tmp_path):
    (tmp_path / "run").mkdir()
    hold(tmp_path / "run")
    RunPage(tmp_path / "run", steps=7).update()
    words = HtmlPage((tmp_path / "run" / "run.html").read_text()).words()
    assert "Running : before the first step of 7" in words and "Nothing is logged yet" in words
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["steps"] == 7


def test_an_empty_or_broken_directory_has_a_page_too(tmp_path):
    for name in ("config.json", "provenance.json", "run.jsonl", "samples.jsonl"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("[nonsense")
    assert "Interrupted" in words_of(tmp_path / "run")


def test_a_long_run_has_a_small_page(tmp_path):
    run_dir = make_run(tmp_path, steps=10, total=200_000)
    short = len(page_of(run_dir))
    with (run_dir / "run.jsonl").open("a") as file:
        for step in range(11, 100_001):
            file.write(json.dumps({"Finetune/Step": step, "Finetune/Loss (Raw)": math.sin(step)}) + "\n")
    rows = [(number, number, None, "?" * 5000, "red " * 2000) for number in range(100)]
    for step in range(30, 60):
        write_answers(run_dir, step, [COT.format("word " * 3000)] * 100, rows)
    html = page_of(run_dir)
    [raw] = re.findall(r'<path class="raw" d="([^"]*)"', html)[:1]
    assert raw.count("L") < 1300 and short < 150_000 and len(html) < 4_000_000
    assert html.count("<article>") == 48 and "52 more rows are asked about" in HtmlPage(html).words()


def test_it_asks_nothing_of_the_network(run_dir):
    html = page_of(run_dir)
    page = HtmlPage(html)
    assert not {"link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert sources and all(value.startswith(("#", "data:image/jpeg;base64,")) for value in sources)
    assert "url(" not in html and "@import" not in html and "//" not in re.sub("(?m)^ *//.*$", "", html)
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_text(run_dir, text):
    untagged = re.sub("SUMMARY|CONCLUSION", "", text)
    plain = [(row, "id", image, "question", reference) for row, _, image, _, reference in ROWS]
    hostile = [(row, text, image, text, reference) for row, _, image, _, reference in ROWS]
    pages = []
    for rows, word in ((plain, "plain"), (hostile, untagged)):
        (run_dir / "samples.jsonl").unlink()
        write_answers(run_dir, 10, ["x" + word, "x" + word, COT.format("x" + word)], rows)
        config = json.loads((run_dir / "config.json").read_text())
        config["model"]["model_id"] = word
        (run_dir / "config.json").write_text(json.dumps(config))
        write_metrics(run_dir, 21, first=21, **{f"mine {word}": 1.0})
        (run_dir / "stopped.json").write_text(json.dumps({"reason": word}))
        pages.append(page_of(run_dir))
        # One metric of this name, not two.
        (run_dir / "run.jsonl").write_text("")
        write_metrics(run_dir, 20)
    expected, found = map(HtmlPage, pages)
    assert Counter(found.tags) == Counter(expected.tags)
    assert Counter(one[:2] for one in found.attributes) == Counter(one[:2] for one in expected.attributes)
    assert printable(text, 80) in "".join(found.text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", pages[1])


class TestTiming:
    """When the page is written."""

    @pytest.fixture
    def page(self, run_dir, monkeypatch):
        self.now, self.cost, self.written = 100.0, 0.01, []
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        page = RunPage(run_dir)

        def write(end=None):
            self.written.append(self.now)
            self.now += self.cost

        monkeypatch.setattr(page, "write", write)
        return page

    def steps(self, page, seconds, validated=lambda number: False):
        for number in range(int(seconds)):
            self.now += 1
            page(None, SimpleNamespace(values={"Validation Loss": 1.0} if validated(number) else {}))

    def test_every_ten_seconds(self, page):
        self.steps(page, 60)
        assert 5 <= len(self.written) <= 7
        assert all(later - earlier >= 10 for earlier, later in zip(self.written, self.written[1:], strict=False))

    def test_after_a_validation_at_once(self, page):
        self.steps(page, 5)
        self.steps(page, 6, validated=lambda number: number == 2)
        assert len(self.written) == 2

    def test_never_more_than_a_hundredth_of_the_time(self, page):
        self.cost, began = 2.0, self.now
        self.steps(page, 2000, validated=lambda number: True)
        assert self.cost * len(self.written) <= 0.01 * (self.now - began) + self.cost


def test_a_full_disk_costs_the_page_and_not_the_run(run_dir, monkeypatch, capsys):
    page = RunPage(run_dir)
    page.write()
    before = (run_dir / "run.html").read_bytes()
    monkeypatch.setattr(module, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    page.update()
    page.update()
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert (run_dir / "run.html").read_bytes() == before


def test_a_page_is_written_in_little_time(run_dir):
    page = RunPage(run_dir)
    page.write()
    began = time.process_time()
    page.write()
    # A tenth of a second on a machine that is not busy takes 10 s of every 1,000: the share that is kept.
    assert time.process_time() - began < 1
