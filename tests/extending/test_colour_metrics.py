"""Metrics of texts and of pictures from outside the package stand beside its own in all reports."""

import json

import pytest
from few_steps import write_colours

from cobra.evaluation.benchmark import benchmark
from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.metrics.base import value
from cobra.evaluation.tasks import captions as caption_task


@pytest.fixture(autouse=True)
def registered(extend):
    extend("colour_metrics")


def test_they_stand_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_task, "packaged_model_is_installed", lambda: False)
    images = write_colours(tmp_path) / "images"
    names = ["blue", "green", "red", "yellow"]
    references = {f"{name}.png": [f"A {name} square.", f"It is all {name}."] for name in names}
    (images / "captions.json").write_text(json.dumps(references))
    said = dict.fromkeys(names, "red") | {"blue": "blue", "green": "green"}
    rows = [{"image_id": f"{name}.png", "caption": f"a {word}"} for name, word in said.items()]
    (tmp_path / "predictions.json").write_text(json.dumps(rows))
    config = BenchmarkConfig(coco_annotations=str(images), predictions=tmp_path / "predictions.json", device="cpu")
    config.output_dir = tmp_path / "benchmark"
    results = benchmark(config)
    assert results is not None
    metrics = results.variants["predictions"].metrics
    assert list(metrics)[-2:] == ["words", "colour"]
    assert (value(metrics["words"]), value(metrics["colour"])) == (2, 0.75)
    floors = {name: value(scores["colour"]) for name, scores in results.floors.items()}
    assert floors == {"shuffled": 0, "human": 1}
    page = (config.output_dir / "report.html").read_text()
    assert "lower is better" in page and "the caption names it" in page
