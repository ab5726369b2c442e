"""The page of results, and the run that makes it."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The modules harness_results and run_all, with results kept in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import harness_results
    import run_all

    monkeypatch.setattr(harness_results, "STORE", tmp_path / "results.json")
    monkeypatch.setattr(harness_results, "PAGE", tmp_path / "RESULTS.md")
    return harness_results, run_all


def rows(value: float, met: bool | None) -> list[dict]:
    return [{"name": "rate, ours against theirs", "value": value, "unit": "x", "required": ">= 4", "met": met}]


def test_every_benchmark_is_run(bench):
    assert set(bench[1].NAMES) == {
        *("caption_metrics", "dataset", "evaluation", "generation", "mamba_ops"),
        *("prepare", "serving", "stage_search", "train_step"),
    }


def test_a_page_shows_every_row_and_what_is_not_met(bench, monkeypatch):
    results = bench[0]
    results.keep("generation", results.new_result({"benchmark": "generation: 2 threads", "rows": rows(5, True)}, 61.4))
    results.keep("evaluation", results.new_result({"benchmark": "evaluation", "rows": rows(1234.5, False)}, 7))
    page = results.PAGE.read_text()
    assert "\nNothing was measured on a GPU.\n" in page
    assert "1 of 2 requirements are met: these are not:\n\n- evaluation: rate, ours against theirs: 1,234 x, " in page
    assert page.index("## Machine") < page.index("## evaluation") < page.index("## generation")
    assert "| rate, ours against theirs | 5 x | >= 4 | yes |" in page and "1,234 x | >= 4 | **no** |" in page
    assert "`generation: 2 threads`, measured on " in page and " in 61 s." in page
    assert all(f"| {name} | " in page for name in ("Processor", "Memory", "Python", "torch", "transformers"))
    # Measured again elsewhere: both machines are told.
    monkeypatch.setattr(results, "describe_machine", lambda: {"Processor": "another", "GPU": "NVIDIA H100"})
    results.keep("generation", results.new_result({"benchmark": "generation", "rows": rows(4, True)}, 1))
    page = results.PAGE.read_text()
    assert (
        "## Machine 2\n\n| | |\n|---|---|\n| Processor | another |\n| GPU | NVIDIA H100 |" in page
        and " in 1 s on machine 2." in page
    )
    assert "5 x" not in page and page.count("## generation") == 1
    assert "These machines had a GPU: NVIDIA H100." in page and "Nothing was measured" not in page


def test_a_result_of_a_benchmark_that_is_gone_is_dropped(bench):
    results = bench[0]
    results.STORE.write_text(json.dumps({"once": {}}))
    results.keep("generation", results.new_result({"benchmark": "generation", "rows": rows(5, True)}, 1))
    assert list(json.loads(results.STORE.read_text())) == ["generation"]


def test_a_benchmark_that_fails_costs_no_other(bench, monkeypatch, tmp_path, capfd):
    results, run_all = bench
    printed = {"benchmark": "second", "rows": rows(5, True)}
    (tmp_path / "first.py").write_text('"""Fails."""\nraise SystemExit("no memory")')
    (tmp_path / "second.py").write_text(f'"""Works."""\nprint("a table")\nprint({json.dumps(json.dumps(printed))})')
    (tmp_path / "third.py").write_text('print(\'{"benchmark": "not measured: no model", "rows": []}\')')
    for module in bench:
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(run_all, "NAMES", ["first", "second", "third"])
    assert run_all.main(run_all.AllBenchmarks()) == 1
    out, err = capfd.readouterr()
    assert "second (2 of 3)\na table\n" in out and "1 of 1 requirements are met" in out
    assert "no memory" in err and "first has no new result: it ended with exit code 1" in err
    assert "third has no new result: not measured: no model" in err
    assert list(results.read_results()) == ["second"]
    assert run_all.main(run_all.AllBenchmarks(only=("second",))) == 0


def test_an_unknown_benchmark_is_told_before_anything_runs(bench):
    from cobra.util.errors import UserError

    with pytest.raises(UserError, match="there is no benchmark speed; there are: caption_metrics, dataset"):
        bench[1].main(bench[1].AllBenchmarks(only=("generation", "speed")))


def test_the_kept_page_is_that_of_the_kept_results(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import harness_results

    results = harness_results.read_results()
    assert results and harness_results.PAGE.read_text() == harness_results.page(results)
