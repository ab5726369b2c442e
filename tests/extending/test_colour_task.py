"""A task from outside the package is answered, scored and written as those of the package are."""

import pytest
from few_steps import write_colours

from cobra.evaluation.benchmark import benchmark
from cobra.evaluation.config import BenchmarkConfig
from cobra.util.errors import UserError


@pytest.fixture(autouse=True)
def registered(extend):
    extend("colour_task")


def test_it_is_answered_and_scored(tmp_path):
    images, output = write_colours(tmp_path) / "images", tmp_path / "benchmark"
    config = BenchmarkConfig("cobra-tiny", task="colours", image_dir=images, output_dir=output, device="cpu")
    config.max_new_tokens = 12
    results = benchmark(config)
    assert results is not None and results.label("right") == "right colours"
    assert results.variants["baseline"].metrics["right"].per_image.shape == (4,)
    assert "right" in (output / "metrics.json").read_text()
    assert "right colours" in (output / "report.html").read_text()


def test_its_own_flags_are_checked_by_it(tmp_path):
    with pytest.raises(UserError, match="--image_dir is missing"):
        benchmark(BenchmarkConfig("cobra-tiny", task="colours", output_dir=tmp_path, device="cpu"))
