"""METEOR and SPICE: their arithmetic, their programs' protocol, and their absence."""

import importlib.util
import shutil
import stat
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from plain_metrics import recorded

from cobra.evaluation.metrics.base import value
from cobra.evaluation.metrics.java_metrics import JavaMetrics, MeteorMetric, find_java_metrics
from cobra.util.errors import UserError

CAPTIONS = [["a", "dog"], ["|||", "x"]]
REFERENCES = [[["the", "dog"]], [["x"], ["y", "z"]]]

has_meteor = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None


def score(metrics, captions=CAPTIONS, references=REFERENCES):
    return metrics(SimpleNamespace(tokens=references))(SimpleNamespace(tokens=captions))


@pytest.fixture
def odd(golden_dir):
    return recorded(golden_dir, "odd_captions.json")


def test_golden_meteor(odd):
    metric = MeteorMetric(np.array([image["meteor_statistics"] for image in odd["images"]], dtype=float))
    np.testing.assert_allclose(metric.per_image, [image["meteor"] for image in odd["images"]], rtol=0, atol=1e-12)
    assert value(metric) == pytest.approx(odd["corpus"]["meteor"], abs=1e-12)
    weights = np.ones((2, len(odd["images"])))
    np.testing.assert_allclose(metric.corpus(weights), [value(metric)] * 2, rtol=1e-12)


def test_nothing_in_common_is_zero_without_a_warning(recwarn):
    metric = MeteorMetric(np.zeros((2, 23)))
    assert value(metric) == 0 and metric.per_image.tolist() == [0, 0] and not list(recwarn)


@pytest.mark.skipif(not has_meteor, reason="pycocoevalcap or Java is not installed")
def test_golden_meteor_from_the_program(odd):
    tokens = [image["hypothesis_tokens"].split(" ") for image in odd["images"]]
    references = [[text.split(" ") for text in image["reference_tokens"]] for image in odd["images"]]
    found = score(find_java_metrics(), tokens, references)["meteor"]
    np.testing.assert_allclose(found.per_image, [image["meteor"] for image in odd["images"]], rtol=0, atol=1e-12)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder in pycocoevalcap's place, without the programs."""
    folder = tmp_path / "pycocoevalcap"
    (folder / "meteor").mkdir(parents=True)
    (folder / "spice" / "lib").mkdir(parents=True)
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    return folder


@pytest.fixture
def java(tmp_path, monkeypatch, package):
    """A program in Java's place that answers METEOR's protocol: words of caption and references, nothing matched."""

    def install(*lines):
        script = tmp_path / "bin" / "java"
        script.parent.mkdir(exist_ok=True)
        head = ["#!" + sys.executable, "import sys", "if sys.argv[1] == '-version': sys.exit(0)"]
        script.write_text("\n".join([*head, *lines]) + "\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(script.parent))

    install(
        "for line in sys.stdin:",
        "    kind, *references, caption = line.rstrip('\\n').split(' ||| ')",
        "    assert kind == 'SCORE' and '-stdio' in sys.argv, line",
        "    print(len(caption.split()), sum(len(text.split()) for text in references), *[0.0] * 21)",
    )
    return install


def test_the_protocol_of_meteor(java):
    found = find_java_metrics()
    assert len(found.left_out) == 1 and found.left_out[0].startswith("SPICE left out: its language models")
    metric = score(found)["meteor"]
    # Three bars would end the caption.
    assert metric.statistics[:, :2].tolist() == [[2, 2], [1, 3]] and value(metric) == 0


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["sys.stderr.write('\\nOutOfMemoryError\\n'); sys.exit(1)"], "OutOfMemoryError"),
        (["sys.stdin.read(); print('1 2')"], "it wrote nothing"),
    ],
)
def test_a_program_that_fails_is_an_error(java, lines, reason):
    java(*lines)
    with pytest.raises(UserError, match=f"METEOR's program failed .{reason}"):
        score(find_java_metrics())


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    found = find_java_metrics()
    assert [line.split(":")[0] for line in found.left_out] == ["METEOR and SPICE left out"]
    assert all("pip install 'cobra-vlm[java]'" in line and "\n" not in line for line in found.left_out)
    assert score(found) == {}


def test_without_java(package, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert all("there is no Java" in line for line in find_java_metrics().left_out)


def test_a_java_that_only_says_where_to_get_one(java):
    java("sys.exit(1)")
    script = shutil.which("java")
    with open(script) as file:
        text = file.read().replace("sys.exit(0)", "sys.exit(1)")
    with open(script, "w") as file:
        file.write(text)
    assert all("there is no Java" in line for line in find_java_metrics().left_out)


@pytest.fixture
def spice(java, package, monkeypatch):
    """Language models and a module in SPICE's place; its scores are 0.5 for two words, none for others."""
    (package / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").write_bytes(b"")

    class Spice:
        error = None

        def compute_score(self, references, captions):
            if self.error:
                raise self.error
            assert list(references) == list(captions) and all(isinstance(own, list) for own in references.values())
            scores = [0.5 if len(texts[0].split()) == 2 else float("nan") for texts in captions.values()]
            return 0.0, [{"All": {"f": score}} for score in scores]

    module = ModuleType("pycocoevalcap.spice.spice")
    module.Spice = Spice
    for name in ("pycocoevalcap", "pycocoevalcap.spice"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Spice


def test_spice_with_its_language_models(spice):
    found = find_java_metrics()
    assert found.left_out == ()
    assert score(found)["spice"].per_image.tolist() == [0.5, 0]


def test_spice_that_does_not_start_is_left_out(spice):
    spice.error = subprocess.CalledProcessError(1, ["java"])
    found = find_java_metrics()
    assert len(found.left_out) == 1 and "SPICE's program failed" in found.left_out[0]
    assert list(score(found)) == ["meteor"]


def test_none_need_be_there():
    assert JavaMetrics({}, ("why",)).left_out == ("why",)
