"""The model that lmms-eval finds: its answers are ours, a CONCLUSION is returned, and what it cannot do is refused."""

import importlib
import json
import os
import random
import subprocess
import sys
import tomllib
import zlib
from dataclasses import replace
from pathlib import Path

import lmms_eval_stand_in
import pytest
from made_results import COT

import cobra
from cobra.demo.datasets import write_question_rows
from cobra.demo.scenes import random_scene, render
from cobra.evaluation.benchmark import benchmark
from cobra.evaluation.config import BenchmarkConfig
from cobra.evaluation.data.holdout_rows import read_holdout
from cobra.evaluation.data.lmms_eval_logs import read_logs
from cobra.util.errors import UserError

ROOT = Path(__file__).parents[2]
NAME = "cobra.evaluation.lmms_eval.models"
QUESTIONS = ["What is it?", "How many shapes are there?", "Is there a circle?"]
SHORT = {"max_new_tokens": 8, "temperature": 0, "until": ["\n\n"]}


@pytest.fixture(scope="module")
def lmms_eval():
    """The two modules, over the real lmms-eval or the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        lmms_eval_stand_in.provide(patch)
        for name in (NAME, "cobra.evaluation.lmms_eval.plugin"):
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module(NAME)
        for name in (NAME, "cobra.evaluation.lmms_eval.plugin"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pictures():
    return [render(random_scene(random.Random(seed), "train")) for seed in range(3)]


@pytest.fixture(scope="module")
def tiny():
    return cobra.load("cobra-tiny", device="cpu")


@pytest.fixture
def model(lmms_eval, tiny, pictures, monkeypatch):
    """Build the model as lmms-eval does, with documents that are a picture and a question each."""

    def build(kind="CobraSimple", staged=False, **arguments):
        monkeypatch.setattr(cobra, "load", lambda *_, **given: loads.append(given) or tiny, raising=False)
        monkeypatch.setattr(tiny, "is_stock", not staged)
        built = getattr(lmms_eval, kind)("cobra-tiny", max_batch_size=None, **arguments)
        built.task_dict["scenes"] = {"test": [*zip(pictures, QUESTIONS, strict=True)]}
        built.loads = loads
        return built

    loads = []
    return build


@pytest.fixture
def staged(tiny, monkeypatch):
    """Make the model write four stages; returns the batches that it was asked, as (questions, options)."""
    calls = []

    def answer(prompts, questions, chosen, pixels, prefix=None, seeds=None):
        assert (pixels is None) or len(next(iter(pixels.values()))) == len(prompts)
        calls.append((list(questions), chosen, list(seeds)))
        return [COT.format(f"about {question}") for question in questions]

    monkeypatch.setattr(tiny, "answer_prompts", answer)
    return calls


def requests(module, arguments=SHORT, visuals=None, numbers=range(3)):
    """Return plain requests."""
    visuals = visuals or (lambda doc: [doc[0]])
    return [
        module.Instance(
            "generate_until",
            (QUESTIONS[number], dict(arguments), visuals, number, "scenes", "test"),
            0,
            {"task": "scenes", "doc_id": number, "repeats": 1},
        )
        for number in numbers
    ]


def chats(module, messages):
    """Return a request of messages about each document."""
    return [
        module.Instance(
            "generate_until",
            (QUESTIONS[number], messages, dict(SHORT), number, "scenes", "test"),
            0,
            {"task": "scenes", "doc_id": number, "repeats": 1},
        )
        for number in range(3)
    ]


def user(doc, text=None):
    """Return a message with a document's picture and question."""
    return {"role": "user", "content": [{"type": "image", "url": doc[0]}, {"type": "text", "text": text or doc[1]}]}


@pytest.mark.parametrize("batch_size", [1, "2", 8])
def test_answers_are_those_of_ask_in_any_batch(lmms_eval, model, tiny, pictures, batch_size):
    expected = tiny.ask(pictures, QUESTIONS, max_new_tokens=8)
    given = model(batch_size=batch_size).generate_until(requests(lmms_eval))
    assert [one.text for one in given] == expected and len({*expected}) > 1
    assert [one.token_counts.to_dict()["raw"] for one in given] == expected
    chat = model("CobraChat", batch_size=batch_size).generate_until(chats(lmms_eval, lambda doc: [user(doc)]))
    assert [one.text for one in chat] == expected


def test_texts_without_an_image_are_answered_too(lmms_eval, model, tiny):
    given = model(batch_size=2).generate_until(
        requests(lmms_eval, visuals=lambda doc: None if doc[1] == QUESTIONS[1] else [doc[0]])
    )
    assert given[1].text == tiny.ask(None, QUESTIONS[1], max_new_tokens=8)


def test_turns_and_a_system_message_stand_in_the_prompt(lmms_eval, model, tiny, staged, monkeypatch):
    prompts = []
    monkeypatch.setattr(tiny, "tokenize", lambda prompt: prompts.append(prompt) or [1])
    history = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": [{"type": "text", "text": "B."}]}]
    system = {"role": "system", "content": "Be brief."}
    model("CobraChat").generate_until(chats(lmms_eval, lambda doc: [system, *history, user(doc)]))
    builder = tiny.get_prompt_builder()
    for role, text in (("human", "Be brief.\n\nA?"), ("gpt", "B."), ("human", QUESTIONS[0])):
        builder.add_turn(role, text)
    assert prompts[0] == builder.get_prompt()
    assert staged[0][0] == [QUESTIONS[0]]


def test_a_reasoning_model_gets_room_and_its_conclusion_is_returned(lmms_eval, model, staged):
    given = model(staged=True, batch_size=3).generate_until(requests(lmms_eval, {"max_new_tokens": 16}))
    assert [one.text for one in given] == [f"about {question}" for question in QUESTIONS]
    logged = [one.token_counts.to_dict() for one in given]
    assert [one["raw"] for one in logged] == [COT.format(f"about {question}") for question in QUESTIONS]
    assert all(0 < one["reasoning_tokens"] < one["output_tokens"] for one in logged)
    assert json.loads(json.dumps(logged)) == logged
    assert [options.max_new_tokens for _, options, _ in staged] == [512]


@pytest.mark.parametrize(
    ("is_staged", "own", "wanted", "limit"),
    [
        (True, None, 16, 512),
        (True, None, 900, 900),
        (True, 300, 16, 300),
        (False, None, 16, 16),
        (False, None, None, 512),
    ],
)
def test_limits_of_tokens(lmms_eval, model, staged, is_staged, own, wanted, limit):
    arguments = {} if wanted is None else {"max_new_tokens": wanted}
    model(staged=is_staged, max_new_tokens=own).generate_until(requests(lmms_eval, arguments, numbers=[0]))
    assert staged[0][1].max_new_tokens == limit


def test_search_and_sampling_of_model_args_go_before_the_tasks_own(lmms_eval, model, staged):
    sampled = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.7, "top_p": 0.5}
    model(staged=True, search="vote", beams=6, temperature=0.9).generate_until(
        requests(lmms_eval, sampled, numbers=[0])
    )
    model(staged=True).generate_until(requests(lmms_eval, sampled, numbers=[0]))
    model(staged=True).generate_until(requests(lmms_eval, {"temperature": 0.2}, numbers=[0]))
    model(staged=True).generate_until(requests(lmms_eval, {"do_sample": True, "temperature": 0}, numbers=[0]))
    told = [(one.search, one.beams, one.do_sample, one.temperature, one.top_p) for _, one, _ in staged]
    assert told == [
        ("vote", 6, False, 0.9, None),
        ("none", 4, True, 0.7, 0.5),
        ("none", 4, True, 0.2, None),
        ("none", 4, False, None, None),
    ]


SAMPLED = {"do_sample": True, "temperature": 0.9, "top_p": 0.5, "top_k": 7}


@pytest.mark.parametrize(
    ("named", "asked", "expected"),
    [
        ({"temperature": 0.5}, SAMPLED, (True, 0.5, 0.5, 7)),
        ({"top_p": 0.8, "top_k": 0}, SAMPLED, (True, 0.9, 0.8, 0)),
        ({"do_sample": False}, SAMPLED, (False, None, None, 0)),
        ({"do_sample": False, "temperature": 0.5}, SAMPLED, (False, 0.5, None, 0)),
        ({"do_sample": True}, {"temperature": 0}, (True, None, None, 0)),
        ({"do_sample": True}, {"temperature": 0.4}, (True, 0.4, None, 0)),
        ({}, {"do_sample": True, "temperature": 0.7, "top_k": -1, "top_p": 0}, (True, 0.7, None, 0)),
        ({}, {"do_sample": False, "temperature": 0.7}, (False, None, None, 0)),
    ],
)
def test_what_model_args_name_goes_before_the_task(lmms_eval, model, staged, named, asked, expected):
    model(**named).generate_until(requests(lmms_eval, asked, numbers=[0]))
    [(_, chosen, _)] = staged
    assert (chosen.do_sample, chosen.temperature, chosen.top_p, chosen.top_k) == expected


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"do_sample": True, "temperature": -1}, "temperature is -1 and must be positive"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5 and must be above 0"),
        ({"do_sample": True, "top_k": "many"}, "top_k is 'many', expected a number"),
        ({"max_new_tokens": "many"}, "invalid literal"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0 and must be at least 1"),
    ],
)
def test_what_a_task_asks_wrongly_is_refused_by_its_name_before_anything_is_answered(
    lmms_eval, model, staged, asked, problem
):
    with pytest.raises(UserError, match=f"document 0 of the task scenes .*{problem}.*generation_kwargs.*--model_args"):
        model().generate_until(requests(lmms_eval, asked))
    assert not staged


def test_seeds_are_of_documents_and_repeats_and_not_of_batches(lmms_eval, model, staged):
    twice = [one for one in requests(lmms_eval) for _ in range(2)]
    model(staged=True, batch_size=6).generate_until(twice)
    model(staged=True, batch_size=1).generate_until(twice)
    model(staged=True, batch_size=1, seed=5).generate_until(requests(lmms_eval))
    together, *alone = [seeds for _, _, seeds in staged]
    # The first answers' are the benchmark's, whose rows have these numbers: a search finds the same there.
    assert {zlib.crc32(str(number).encode()) for number in range(3)} < {*together}
    alone, other = sum(alone[:6], []), sum(alone[6:], [])
    assert sorted(together) == sorted(alone) and len({*together}) == 6
    assert len(other) == 3 and not {*together} & {*other}


def test_until_ends_what_is_returned_but_for_the_pause_between_paragraphs(lmms_eval, model, staged):
    given = model(staged=True).generate_until(requests(lmms_eval, {"until": ["\n\n", " is", "there"]}, numbers=[0, 1]))
    assert [one.text for one in given] == ["about What", "about How many shapes are"]
    assert given[0].token_counts.raw.endswith("</CONCLUSION>")


def test_what_a_task_asks_in_vain_is_told(lmms_eval, model, staged, caplog):
    model().generate_until(requests(lmms_eval, {"num_beams": 3, "length_penalty_of_a_test": 1.0, "use_cache": True}))
    told = [record.message for record in caplog.records]
    assert sum("length_penalty_of_a_test" in line for line in told) == 1 and any("num_beams" in line for line in told)
    assert not any("use_cache" in line for line in told)


def test_several_images_are_refused_before_anything_is_answered(lmms_eval, model, staged):
    several = requests(lmms_eval, visuals=lambda doc: [doc[0]] * (1 + (doc[1] == QUESTIONS[2])))
    with pytest.raises(UserError, match="document 2 of the task scenes has 2 images, and the model reads one.*--tasks"):
        model().generate_until(several)
    with pytest.raises(UserError, match="has 2 images"):
        history = [{"role": "assistant", "content": "A square."}]
        model("CobraChat").generate_until(chats(lmms_eval, lambda doc: [user(doc), *history, user(doc)]))
    assert not staged


def test_what_is_no_question_about_an_image_is_refused(lmms_eval, model, tiny, staged):
    video = {"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}
    with pytest.raises(UserError, match="has video, and the model reads images and text"):
        model("CobraChat").generate_until(chats(lmms_eval, lambda doc: [video]))
    answer = {"role": "assistant", "content": "."}
    with pytest.raises(UserError, match="ends with a turn of the assistant"):
        model("CobraChat").generate_until(chats(lmms_eval, lambda doc: [user(doc), answer]))
    with pytest.raises(UserError, match="tokens, and the model reads"):
        model("CobraChat").generate_until(chats(lmms_eval, lambda doc: [user(doc, "word " * 5000)]))
    for method, name in (("generate_until_multi_round", "several rounds"), ("loglikelihood", "seedbench_ppl")):
        with pytest.raises(NotImplementedError, match=name):
            getattr(model(), method)([])
    assert not staged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"serch": "vote"}, "'serch' is unknown.*pretrained.*Did you mean search"),
        ({"search": "votes"}, "the search 'votes' is unknown"),
        ({"batch_size": "auto"}, "'auto', expected a whole number"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many', expected a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0 and must be at least 1"),
    ],
)
def test_arguments_that_make_no_sense(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model(**arguments)


def test_each_process_knows_its_place(model, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (model().rank, model().world_size) == (3, 4)
    built = model(dtype="fp32", device="cpu")
    assert {key: built.loads[-1][key] for key in ("device", "dtype")} == {"device": "cpu", "dtype": "fp32"}


def test_the_entry_point_leads_to_both_classes(lmms_eval):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    assert list(points) == ["cobra"]
    module, _, name = points["cobra"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert (manifest.model_id, manifest.aliases) == ("cobra", ("cobra-vlm",))
    for path, is_simple in ((manifest.simple_class_path, True), (manifest.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).is_simple is is_simple


TASK = """
task: scenes
dataset_path: parquet
dataset_kwargs: {data_files: {test: FOLDER/scenes.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
process_results: !function utils.results
generation_kwargs: {max_new_tokens: 16}
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
from cobra.reasoning.matching import match_conclusion

def visual(doc):
    return [doc["image"]]

def results(doc, results):
    return {"right": float(match_conclusion(results[0], doc["answer"], doc["question"]) is not None)}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not lmms_eval_stand_in.is_installed(), reason="lmms-eval is not installed: cobra-vlm[lmms-eval]")
@pytest.mark.parametrize("processes", [1, 2])
def test_the_real_program_scores_as_our_benchmark_does(tmp_path, processes):
    """Held-out rows in Parquet, offline: the same answers and the same share of right conclusions."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    path, image_dir = write_question_rows(tmp_path / "rows", 24, 3)
    rows = [
        {
            "image": {"bytes": (image_dir / row.image).read_bytes(), "path": None},
            "question": row.question,
            "answer": row.conclusion,
        }
        for row in read_holdout(path).rows
    ]
    features = Features({"image": ImageFeature(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "scenes.parquet")
    (tmp_path / "scenes.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)))
    (tmp_path / "utils.py").write_text(UTILS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] * (processes > 1)
    command = [
        sys.executable,
        *launcher,
        "-m",
        "lmms_eval",
        "--model",
        "cobra",
        "--model_args",
        "pretrained=cobra-tiny",
    ]
    command += ["--include_path", str(tmp_path), "--tasks", "scenes", "--batch_size", "4", "--log_samples"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command += ["--output_path", str(tmp_path / "logs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [logged] = read_logs([tmp_path / "logs"])
    samples = logged.models["logs"].samples.values()
    config = BenchmarkConfig(checkpoint="cobra-tiny", task="llava-cot", llava_cot_annotations=path)
    results = benchmark(replace(config, image_dir=image_dir, output_dir=tmp_path / "out", device="cpu"))
    assert [one.raw for one in samples] == [one.raw for one in results.variants["baseline"].answers]
    share = results.estimates["baseline"]["conclusion_accuracy"].value
    assert sum(one.scores["right"] for one in samples) / 24 == share > 0
