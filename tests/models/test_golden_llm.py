"""The language model and its generation against outputs of the original Cobra."""

import math

import pytest
import torch
from golden_set import LOGITS, LOSS, PIXELS, by_tower, close, close_to_some, numbered
from PIL import Image

from cobra.models.backbones.llm.backbone import read_mamba_config
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.models.generation.sampling import keep_top_k, keep_top_p
from cobra.models.mamba import MambaLM, MambaState
from cobra.models.vlms import GenerationOptions
from cobra.util.errors import UserError


@torch.no_grad()
def test_golden_llm(golden, golden_vlm):
    arrays, observed = golden.npz("llm.npz"), golden.json("observed.json")
    output = golden_vlm(input_ids=arrays["input_ids"], labels=arrays["labels"])
    close(output.logits, arrays["logits"], **LOGITS)
    close(output.logits[:, -1:], arrays["last_logits"], **LOGITS)
    assert output.logits.std().item() == pytest.approx(observed["llm_logits_std"], rel=1e-4)
    assert output.loss.item() == pytest.approx(arrays["loss"].item(), **LOSS)
    output = golden_vlm(inputs_embeds=arrays["inputs_embeds"], labels=arrays["embeds_labels"])
    for _, expected in numbered(arrays, "embeds_logits_stride"):
        close_to_some(output.logits, expected, -1, **LOGITS)
    assert output.loss.item() == pytest.approx(arrays["embeds_loss"].item(), **LOSS)


@torch.no_grad()
def test_golden_llm_layers(golden, golden_vlm):
    arrays = golden.npz("llm_layers.npz")
    llm = golden_vlm.llm_backbone.llm
    hidden, residual = llm.embed(arrays["input_ids"]), None
    close(hidden, arrays["embedding"], **LOGITS)
    assert len(llm.backbone.layers) == sum(name.endswith("_hidden") and name.startswith("layer") for name in arrays)
    for index, block in enumerate(llm.backbone.layers):
        hidden, residual = block(hidden, residual)
        close(hidden, arrays[f"layer{index}_hidden"], **LOGITS)
        close(residual, arrays[f"layer{index}_residual"], **LOGITS)
    close(llm.backbone.norm_f(hidden + residual), arrays["final_norm_hidden"], **LOGITS)


@torch.no_grad()
def test_golden_mixer_prefill_and_steps(golden, golden_vlm):
    arrays = golden.npz("mixer.npz")
    llm = golden_vlm.llm_backbone.llm
    mixer = llm.backbone.layers[int(arrays["layer"])].mixer
    x = arrays["x"]

    def assert_state(state, after):
        convs, ssms = (dict(numbered(arrays, f"{name}_state_after")) for name in ("conv", "ssm"))
        close(state["conv"], convs[after], **LOGITS)
        close(state["ssm"], ssms[after], **LOGITS)

    close(mixer(x), arrays["y_full"], **LOGITS)
    [(prefill, expected)] = numbered(arrays, "y_prefill")
    state = MambaState.zeros(llm.config, len(x), "cpu").layer(0)
    close(mixer(x[:, :prefill], state), expected, **LOGITS)
    assert_state(state, prefill)
    steps = [mixer(x[:, step : step + 1], state) for step in range(prefill, x.shape[1])]
    close(torch.cat(steps, 1), arrays["y_steps"].reshape(len(x), -1, x.shape[-1]), **LOGITS)
    assert_state(state, x.shape[1])
    # Fewer tokens than the convolution's window.
    for length, window in numbered(arrays, "conv_state_after_prefill"):
        state = MambaState.zeros(llm.config, len(x), "cpu").layer(0)
        mixer(x[:, :length], state)
        close(state["conv"], window, **LOGITS)


def test_golden_initial_values(golden):
    """Both are draws of one distribution: mean and deviation agree within 5 standard errors of their difference."""
    torch.manual_seed(0)
    state = MambaLM(read_mamba_config(golden.path("hf_llm") / "config.json")).state_dict()
    expected = golden.json("observed.json")["llm_init_mean_std"]
    assert state.keys() == expected.keys()
    for name, (mean, deviation) in expected.items():
        values = state[name].double()
        error = 5 * deviation / math.sqrt(values.numel())
        if name.endswith(("A_log", "D", "norm.weight", "norm_f.weight")):
            # Not drawn.
            error = 1e-6
        assert values.mean().item() == pytest.approx(mean, abs=error * math.sqrt(2)), name
        assert values.std().item() == pytest.approx(deviation, abs=error), name


@pytest.fixture
def cases(golden):
    """Entries of the whole model, which have keyword arguments, and of the language model alone, which have none."""
    entries = golden.json("generation.json")
    whole = [case for case in entries if "kwargs" in case]
    alone = [case for case in entries if "kwargs" not in case]
    assert whole and alone
    return whole, alone


def test_golden_generation(golden, golden_vlm, cases):
    """Cobra cuts a long prompt in the middle of its last header and goes on; ours does so from ids alone."""
    pixels = golden.pixels(golden.npz("generation.npz"))
    most = golden.meta["llm_max_length"]
    cut = 0
    for case in cases[0]:
        whole = golden_vlm.encode(case["prompt"])
        prompt = whole[: golden_vlm.max_text_length]
        assert prompt == case["input_ids"], case["tag"]
        tokens, values = case["first_step_top5"]
        _, scores = golden_vlm.prefill(pixels, [prompt])
        close(scores[0, tokens], values, **LOGITS)
        ids = golden_vlm.generate_batch_ids(pixels, [prompt], GenerationOptions.from_kwargs(case["kwargs"]))[0]
        assert ids == case["new_ids"] and len(ids) == case["n_new"], case["tag"]
        assert golden_vlm.decode(ids).strip() == case["text"].strip(), case["tag"]
        if prompt == whole:
            assert golden_vlm.generate_batch(pixels, [case["prompt"]], **case["kwargs"]) == [case["text"].strip()]
            continue
        cut += 1
        with pytest.raises(UserError, match=f"the prompt has {len(whole)} tokens, and the model reads {most} at most"):
            golden_vlm.generate_batch(pixels, [case["prompt"]], **case["kwargs"])
    assert cut


def test_golden_generation_in_one_batch(golden, golden_vlm, cases):
    """Cobra's batches crash (observed.json, generate_batch); ours write, for ragged prompts, what each gets alone."""
    chosen = [case for case in cases[0] if case["kwargs"].keys() == {"max_new_tokens"}]
    assert len({len(case["input_ids"]) for case in chosen}) > 1
    pixels = golden.pixels(golden.npz("generation.npz"))
    pixels = map_pixels(pixels, lambda value: value.expand(len(chosen), -1, -1, -1))
    longest = max(case["kwargs"]["max_new_tokens"] for case in chosen)
    prompts = [case["input_ids"] for case in chosen]
    answers = golden_vlm.generate_batch_ids(pixels, prompts, GenerationOptions(max_new_tokens=longest))
    for case, ids in zip(chosen, answers, strict=True):
        assert ids[: case["n_new"]] == case["new_ids"], case["tag"]


def test_golden_generation_of_the_llm_alone(golden_vlm, cases):
    for case in cases[1]:
        batched = isinstance(case["input_ids"][0], list)
        prompts = case["input_ids"] if batched else [case["input_ids"]]
        expected = case["new_ids"] if batched else [case["new_ids"]]
        # No stop token: an id that no token has.
        options = GenerationOptions(max_new_tokens=len(expected[0]), eos_token_id=-1)
        assert golden_vlm.generate_batch_ids(None, prompts, options) == expected, case["tag"]


def test_golden_run_directory_generates_from_the_image_file(golden, golden_images, golden_vlm, cases):
    """The picture is the one whose pixels the set holds. Cobra crashes without its cache; ours never needs telling."""
    case = next(case for case in cases[0] if "vlm.generate_text" in case)
    expected = by_tower(golden.pixels(golden.npz("generation.npz")))
    found = []
    for path in sorted(path for path in golden_images.rglob("*") if path.is_file()):
        with Image.open(path) as picture:
            actual = by_tower(golden_vlm.preprocess([picture]))
            if all(torch.allclose(actual[name], expected[name], **PIXELS) for name in expected):
                found.append(path)
    assert found, "no picture of the set has these pixels"
    with Image.open(found[0]) as picture:
        for use_cache in ({}, {"use_cache": True}, {"use_cache": False}):
            text = golden_vlm.generate(picture, case["prompt"], **case["kwargs"], **use_cache)
            assert text == case["vlm.generate_text"].strip()


@torch.no_grad()
def test_golden_generation_scores(golden, golden_vlm):
    arrays = golden.npz("generation.npz")
    prompt = arrays["input_ids"][0].tolist()
    state, scores = golden_vlm.prefill(golden.pixels(arrays), [prompt])
    close(scores[0], arrays["first_scores"], **LOGITS)
    llm = golden_vlm.llm_backbone.llm
    [(_, steps)] = numbered(arrays, "step_scores_stride")
    for token, expected in zip(arrays["new_ids"], steps, strict=True):
        close_to_some(scores[0], expected, -1, **LOGITS)
        scores = llm.logits(llm(llm.embed(token.view(1, 1)), state)[:, -1])


FILTERS = {"top_p": lambda scores, value: keep_top_p(scores, float(value)), "top_k": lambda s, k: keep_top_k(s, int(k))}


def test_golden_sampling_filters(golden):
    filters = golden.json("sampling_filters.json")
    file, _, key = filters["logits"].partition(":")
    scores = golden.npz(file)[key].unsqueeze(0)
    assert filters["kept"]
    for rule, kept in filters["kept"].items():
        name, _, value = rule.partition("=")
        filtered = FILTERS[name](scores, value)
        assert filtered.isfinite()[0].nonzero().flatten().tolist() == kept, rule


def test_golden_single_token_answers(golden, golden_vlm):
    assert golden_vlm.string2idx == golden.json("tokenizer_facts.json")["string2idx"]
