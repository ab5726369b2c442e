"""Logs of the real lmms-eval 0.7.3 (the folder `logs`: 16 documents, two tasks, two models), and bad copies of them."""

import json
import shutil
from pathlib import Path

import pytest

from cobra.evaluation.data.lmms_eval_logs import metric_names, read_logs
from cobra.util.errors import UserError

LOGS = Path(__file__).parents[1] / "logs"
BASE, TUNED = LOGS / "base", LOGS / "tuned"
# As lmms-eval printed them: its results lie beside the logs.
MEANS = {"base": 0.0625, "tuned": 0.5625}


@pytest.fixture
def copy(tmp_path):
    """Copies of the logs, which a test may spoil."""
    return Path(shutil.copytree(LOGS, tmp_path / "logs"))


def log_of(folder, task="scenes"):
    """Return the file of a task's log."""
    return next(folder.rglob(f"*_samples_{task}.jsonl"))


def edit(file, change):
    """Change the lines of a log, as a list of objects, in place."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows) or rows))


def test_models_are_paired_by_task_and_document():
    scenes, kinds = read_logs([BASE, TUNED])
    assert (scenes.name, kinds.name) == ("scenes", "scenes_kinds") and list(scenes.models) == ["base", "tuned"]
    assert metric_names(list(scenes.models.values())) == (["exact_match", "conclusion", "words"], [])
    for name, log in scenes.models.items():
        results = json.loads(next((LOGS / name).rglob("*_results.json")).read_text())["results"]["scenes"]
        assert list(log.samples) == list(range(16))
        assert log.higher_is_better == {"exact_match": True, "conclusion": True, "words": False}
        for metric in ("exact_match", "words"):
            mean = sum(sample.scores[metric] for sample in log.samples.values()) / 16
            assert mean == results[f"{metric},none"]
        assert log.about["model"] == "cobra" and log.about["limit"] == 16


def test_the_answer_as_written_is_beside_the_one_that_was_compared():
    [scenes, _] = read_logs([TUNED])
    first = scenes.models["tuned"].samples[0]
    assert (first.question, first.target, first.scored) == ("Which shape is cyan?", "triangle", "triangle")
    assert first.raw.startswith("<SUMMARY>") and first.raw.endswith("<CONCLUSION> triangle </CONCLUSION>")


def test_several_filters_objects_and_corpus_metrics():
    [_, kinds] = read_logs([BASE, TUNED])
    kept, left_out = metric_names(list(kinds.models.values()))
    # The filter `first_word` is the task's second; shape and colour are of a part of the documents each.
    assert kept == ["right", "shape", "right (filter 2)", "shape (filter 2)", "colour", "colour (filter 2)"]
    assert left_out == ["bleu", "bleu (filter 2)"]
    tuned = kinds.models["tuned"].samples.values()
    shares = {name: [one.scores[name] for one in tuned if name in one.scores] for name in kept}
    assert {name: len(scores) for name, scores in shares.items() if len(scores) < 16} == {
        "shape": 13, "shape (filter 2)": 13, "colour": 3, "colour (filter 2)": 3,
    }  # fmt: skip
    assert sum(shares["right"]) / 16 == 0.5625 and sum(shares["right (filter 2)"]) / 16 == 0.5
    assert sum(shares["shape"]) / 13 == pytest.approx(0.6154, abs=1e-4)


def test_a_direction_holds_for_all_filters_of_its_metric(copy):
    for file in copy.rglob("*_results.json"):
        results = json.loads(file.read_text())
        results["higher_is_better"]["scenes_kinds"]["right"] = False
        file.write_text(json.dumps(results))
    [_, kinds] = read_logs([copy / "base", copy / "tuned"])
    for log in kinds.models.values():
        assert not log.higher_is_better["right"] and not log.higher_is_better["right (filter 2)"]
        assert log.higher_is_better["shape (filter 2)"]


def test_a_folder_of_several_models_and_a_file_are_read_too(copy):
    together = copy / "all"
    together.mkdir()
    for name in ("base", "tuned"):
        shutil.move(next((copy / name).iterdir()), together / f"model-{name}")
    [scenes, _] = read_logs([together])
    assert list(scenes.models) == ["model-base", "model-tuned"]
    [alone] = read_logs([log_of(together / "model-base")])
    assert (alone.name, list(alone.models)) == ("scenes", ["model-base"])


def test_names_grow_until_they_differ_and_the_newest_log_counts(copy):
    for name in ("base", "tuned"):
        (copy / "x" / name).mkdir(parents=True)
        shutil.move(next((copy / name).iterdir()), copy / "x" / name / "out")
    old = log_of(copy / "x" / "base")
    older = old.with_name(f"20200101_000000_samples_{'scenes'}.jsonl")
    shutil.copy(old, older)
    edit(older, lambda rows: rows[:3])
    [scenes, _] = read_logs([copy / "x" / "base" / "out", copy / "x" / "tuned" / "out"])
    assert list(scenes.models) == ["base-out", "tuned-out"] and scenes.older == 1
    assert scenes.models["base-out"].path == old and len(scenes.models["base-out"].samples) == 16


def drop_a_task(copy):
    log_of(copy / "tuned", "scenes_kinds").unlink()
    return ["base has logs of the task scenes_kinds, and tuned has none", "tuned has scenes"]


def drop_a_document(copy):
    edit(log_of(copy / "tuned"), lambda rows: rows[1:])
    return ["base has 16 documents of the task scenes, tuned has 15", "tuned lacks 1 document: 0", "--limit"]


def other_documents(copy):
    edit(log_of(copy / "base"), lambda rows: [row | {"doc_id": row["doc_id"] + 8} for row in rows])
    return ["base lacks 8 documents: 0, 1, 2, 3, 4, ..."]


def other_target(copy):
    edit(log_of(copy / "tuned"), lambda rows: rows[0].update(target="circle"))
    return ["document 0 of the task scenes has the target 'triangle' for base and 'circle' for tuned"]


def tear(copy):
    file = log_of(copy / "base")
    file.write_text(file.read_text()[:-20])
    return ["line 16 of", "log of lmms-eval"]


def no_document(copy):
    edit(log_of(copy / "base"), lambda rows: rows[2].pop("doc_id") and None)
    return ["line 3 of", "has no `doc_id`"]


def twice(copy):
    edit(log_of(copy / "base"), lambda rows: [*rows, rows[0]])
    return ["some documents more often than others"]


def empty(copy):
    log_of(copy / "base").write_text("")
    return ["is empty", "--log_samples"]


@pytest.mark.parametrize(
    "spoil", [drop_a_task, drop_a_document, other_documents, other_target, tear, no_document, twice, empty]
)
def test_what_cannot_be_compared_is_named(copy, spoil):
    expected = spoil(copy)
    with pytest.raises(UserError) as error:
        read_logs([copy / "base", copy / "tuned"])
    assert all(part in str(error.value) for part in expected), error.value


@pytest.mark.parametrize("content", ["[]", "5", "{"])
def test_results_that_cannot_be_read_are_named_and_may_be_left_out(copy, content):
    for place in (copy / "base").rglob("*_results.json"):
        place.write_text(content)
    with pytest.raises(UserError, match="_results.json .*leave the file out: the logs are read without it"):
        read_logs([copy / "base"])


def test_places_without_logs(copy, tmp_path):
    (tmp_path / "nothing").mkdir()
    for place, problem in ((tmp_path / "nothing", "has no log"), (tmp_path / "lost", "does not exist")):
        with pytest.raises(UserError, match=f"{problem}.*--log_samples --output_path"):
            read_logs([copy / "base", place])
    with pytest.raises(UserError, match="twice"):
        read_logs([copy / "base", copy / "base"])


@pytest.mark.parametrize(
    "value", [None, "1", [1.0], {"points": 1}, {"score": "1"}, float("nan"), float("inf"), {"score": None}, 10**400]
)
def test_what_is_no_number_makes_no_metric(copy, value):
    edit(log_of(copy / "base"), lambda rows: [row | {"odd": value} for row in rows])
    [scenes, _] = read_logs([copy / "base"])
    kept, left_out = metric_names(list(scenes.models.values()))
    assert "odd" not in kept and left_out == ["odd"]


def test_a_number_that_one_model_lacks_makes_no_metric(copy):
    edit(log_of(copy / "base"), lambda rows: rows[5].pop("words") and None)
    [scenes, _] = read_logs([copy / "base", copy / "tuned"])
    assert metric_names(list(scenes.models.values())) == (["exact_match", "conclusion"], ["words"])
