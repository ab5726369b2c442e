"""Make a golden set of another model, out of this project's code: to see that the golden tests read a set's values.

What no model enters (prompts, sampler, schedules, pictures, rows) is that of tests/golden.
"""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from golden_set import by_tower, gradient_norms
from PIL import Image
from timm.data import resolve_model_data_config
from timm.layers import resample_abs_pos_embed

from cobra.models.backbones.llm import LLMSpec, register_llm_backbone
from cobra.models.backbones.llm.backbone import read_mamba_config
from cobra.models.backbones.vision import TowerSpec, VisionSpec, build_transform, register_vision_backbone
from cobra.models.backbones.vision.transforms import map_pixels
from cobra.models.load import build_vlm
from cobra.models.mamba import MambaLM, MambaState
from cobra.models.vlms import GenerationOptions
from cobra.models.vlms.cobra import build_projector
from cobra.preprocessing.datasets import AlignDataset, FinetuneDataset
from cobra.training.batches import count_targets
from cobra.training.metrics import Metrics
from cobra.training.schedule import learning_rate
from cobra.util.batching_utils import SplitModalitySampler
from cobra.util.data_utils import PaddedCollatorForLanguageModeling

ORIGINAL = Path(__file__).parent / "golden"
# Files that a set may lack.
_LEFT_OUT = ("captions.json", "odd_captions.json", "ptb_strings.json", "stock_cobra+3b_config.json", "README.md")
_LIMIT, _EPOCHS, _IMAGE_SIZE = 64, 2, 70
_IDS = {"llm_backbone_id": "mamba-other-zephyr", "vision_backbone_id": "dinosiglip-vit-other"}
_STRIDE = 3


class Maker:
    """Writes the files of a set into a folder, one kind after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ORIGINAL, folder, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        for path in (folder / "images").iterdir():
            # What Cobra reads; ours lay transparent pictures on white.
            with Image.open(path) as picture:
                picture.convert("RGB").save(path)
        self.meta = self._write_meta()
        torch.manual_seed(self.meta["seed"])
        self.vlm = self._build()
        transform, tokenizer = self.vlm.vision_backbone.image_transform, self.vlm.llm_backbone.tokenizer
        images, prompts = folder / "images", self.vlm.llm_backbone.prompt_builder_fn
        self.data = SimpleNamespace(
            finetune=FinetuneDataset(folder / "finetune.json", images, transform, tokenizer, prompts),
            align=AlignDataset(folder / "align.json", images, transform, tokenizer),
            collator=PaddedCollatorForLanguageModeling(
                tokenizer.model_max_length, tokenizer.pad_token_id, self.vlm.vision_backbone.default_image_resolution
            ),
        )
        self.observed = self.read("observed.json")

    def read(self, name):
        return json.loads((ORIGINAL / name).read_text(encoding="utf-8"))

    def write(self, name, values):
        (self.folder / name).write_text(json.dumps(values), encoding="utf-8")

    def write_npz(self, name, arrays):
        np.savez(self.folder / name, **{key: torch.as_tensor(value).detach().numpy() for key, value in arrays.items()})

    def batch(self, indices, dataset=None):
        dataset = dataset or self.data.finetune
        return self.data.collator([dataset[index] for index in indices])

    def _write_meta(self):
        meta = self.read("meta.json")
        meta |= {"set": "other", "image_size": _IMAGE_SIZE, "num_patches": 25, "llm_max_length": _LIMIT, **_IDS}
        meta |= {"arch_specifier": "gelu-mlp", "image_resize_strategy": "letterbox", "model_id": "cobra-other+3b"}
        meta["llm"] |= {"d_model": 48, "n_layer": 2, "ssm_cfg": {"d_state": 8}}
        meta["dino"] |= {"embed_dim": 16, "depth": 2}
        meta["siglip"] |= {"embed_dim": 24, "depth": 3}
        self.write("meta.json", meta)
        config = self.read("hf_llm/config.json") | {key: meta["llm"][key] for key in ("d_model", "n_layer", "ssm_cfg")}
        self.write("hf_llm/config.json", config | {"hidden_size": meta["llm"]["d_model"]})
        facts = self.read("tokenizer_facts.json")
        self.write("tokenizer_facts.json", facts | {"model_max_length": _LIMIT})
        return meta

    def _build(self):
        towers = {}
        for name in ("dino", "siglip"):
            kwargs = {key: value for key, value in self.meta[name].items() if key != "timm"}
            towers[name] = TowerSpec(self.meta[name]["timm"], _IMAGE_SIZE, kwargs)
        register_vision_backbone(_IDS["vision_backbone_id"], VisionSpec(towers, pretrained=False))
        register_llm_backbone(_IDS["llm_backbone_id"], LLMSpec(self.folder / "hf_llm", pretrained=False))
        vlm = build_vlm(self.meta, {}).eval()
        with torch.no_grad():
            for name, value in vlm.named_parameters():
                # At initial values every answer is the same.
                if name.endswith(("embedding.weight", "out_proj.weight", "in_proj.weight")):
                    value *= 6
        self.write_npz("vision_state_dict.npz", vlm.vision_backbone.state_dict())
        return vlm

    def make(self):
        """Write everything."""
        self.rows()
        self.language_model()
        self.vision()
        self.forwards()
        self.projectors()
        self.generation()
        self.initial_values()
        self.training()
        self.write("observed.json", self.observed)

    def rows(self):
        data, expected = self.data, self.read("finetune_dataset.json")
        expected["model_max_length"] = _LIMIT
        expected["modality_lengths"] = data.finetune.get_modality_lengths()
        for index, row in enumerate(expected["rows"]):
            example = data.finetune[index]
            row |= {key: example[key].tolist() for key in ("input_ids", "labels")}
        self.write("finetune_dataset.json", expected)
        expected = self.read("align_dataset.json")
        expected["n_image_patches"] = self.meta["num_patches"]
        expected["modality_lengths_npatches"] = data.align.get_modality_lengths(self.meta["num_patches"])
        for index, row in enumerate(expected["rows"]):
            row |= {key: data.align[index][key].tolist() for key in ("input_ids", "labels")}
        self.write("align_dataset.json", expected)
        for kind in ("mixed", "multimodal", "text_only"):
            expected = self.read(f"collator_{kind}.json")
            batch = self.batch(expected["dataset_indices"])
            expected |= {key: batch[key].tolist() for key in ("input_ids", "labels", "attention_mask")}
            expected["multimodal_indices"] = batch["multimodal_indices"].tolist()
            facts = {
                name: {"shape": list(value.shape), "row_sums": value.double().flatten(1).sum(1).tolist()}
                for name, value in by_tower(batch["pixel_values"]).items()
            }
            expected["pixel_values"] = facts.get("", facts)
            self.write(f"collator_{kind}.json", expected)

    @torch.no_grad()
    def language_model(self):
        vlm, llm = self.vlm, self.vlm.llm_backbone.llm
        width, vocabulary = self.meta["llm"]["d_model"], self.meta["llm"]["vocab_size_config"]
        ids = torch.randint(2, vocabulary, (2, 14))
        output = vlm(input_ids=ids, labels=ids)
        embeds, labels = torch.randn(2, 11, width), ids[:, :11]
        other = vlm(inputs_embeds=embeds, labels=labels)
        arrays = dict(input_ids=ids, labels=ids, logits=output.logits, loss=output.loss)
        arrays |= {"last_logits": output.logits[:, -1:], f"embeds_logits_stride{_STRIDE}": other.logits[..., ::_STRIDE]}
        arrays |= {"inputs_embeds": embeds, "embeds_labels": labels, "embeds_loss": other.loss}
        self.write_npz("llm.npz", arrays)
        self.observed["llm_logits_std"] = output.logits.std().item()
        hidden, residual = llm.embed(ids[:1]), None
        arrays = {"input_ids": ids[:1], "embedding": hidden}
        for index, block in enumerate(llm.backbone.layers):
            hidden, residual = block(hidden, residual)
            arrays |= {f"layer{index}_hidden": hidden, f"layer{index}_residual": residual}
        self.write_npz("llm_layers.npz", arrays | {"final_norm_hidden": llm.backbone.norm_f(hidden + residual)})
        x, prefill, mixer = torch.randn(2, 8, width), 5, llm.backbone.layers[0].mixer
        arrays = {"layer": 0, "x": x, "y_full": mixer(x)}
        state = MambaState.zeros(llm.config, 2, "cpu").layer(0)
        arrays[f"y_prefill{prefill}"] = mixer(x[:, :prefill], state)
        arrays |= {"conv_state_after5": state["conv"].clone(), "ssm_state_after5": state["ssm"].clone()}
        arrays["y_steps"] = torch.cat([mixer(x[:, step : step + 1], state) for step in range(prefill, 8)], 1)
        arrays |= {"conv_state_after8": state["conv"], "ssm_state_after8": state["ssm"]}
        for length in (1, 2):
            state = MambaState.zeros(llm.config, 2, "cpu").layer(0)
            mixer(x[:, :length], state)
            arrays[f"conv_state_after_prefill{length}"] = state["conv"]
        self.write_npz("mixer.npz", arrays)

    @torch.no_grad()
    def vision(self):
        vision, size = self.vlm.vision_backbone, 42
        facts = {"num_patches": vision.num_patches, "embed_dim": vision.embed_dim, "ln_eps": 1e-6}
        facts["default_image_resolution"] = list(vision.default_image_resolution)
        arrays = {}
        for name in vision.tower_names:
            tower, config = vision.tower(name), resolve_model_data_config(vision.tower(name))
            facts[f"{name}_feat"] = [2, tower.patch_embed.num_patches, tower.embed_dim]
            facts[f"{name}_data_cfg"] = {key: str(value) for key, value in config.items()}
            facts[f"{name}_data_cfg"]["input_size"] = str((3, _IMAGE_SIZE, _IMAGE_SIZE))
            facts[f"{name}_act"] = str(tower.blocks[0].mlp.act)
            for strategy in ("resize-naive", "resize-crop", "letterbox"):
                transform = build_transform(strategy, size, config["mean"], config["std"])
                for path in sorted((self.folder / "images").iterdir()):
                    with Image.open(path) as picture:
                        arrays[f"{strategy}/{path.name}/{name}"] = transform(picture.convert("RGB"))
        self.observed["vision"] = facts
        self.write_npz("transforms.npz", arrays)
        steps = json.dumps(self.read("transforms.json")).replace("28", str(size))
        self.write("transforms.json", json.loads(steps))
        source = torch.randn(1, 36, 4)
        resampled = {f"pe_{n}x{n}": resample_abs_pos_embed(source, [n, n], num_prefix_tokens=0) for n in (4, 5, 9)}
        self.write_npz("pos_embed_resample.npz", {"pe_6x6": source} | resampled)

    def forwards(self):
        vlm, observed = self.vlm, self.observed
        observed["vlm_state_dict"] = {k: [list(v.shape), str(v.dtype)] for k, v in vlm.state_dict().items()}
        for kind in ("mixed", "multimodal"):
            batch = self.batch(self.read(f"collator_{kind}.json")["dataset_indices"])
            with torch.no_grad():
                output, rows = vlm(**batch), batch["multimodal_indices"]
                pixels = map_pixels(batch["pixel_values"], lambda value, rows=rows: value[rows])
                patches = vlm.vision_backbone(pixels)
                embeds, labels = vlm._embed(batch["input_ids"], batch["pixel_values"], batch["labels"], rows)
            arrays = {key: batch[key] for key in ("input_ids", "labels", "attention_mask", "multimodal_indices")}
            arrays |= {"loss": output.loss, "logits_vocab_stride": _STRIDE, "fused_labels": labels}
            arrays |= {"logits_strided": output.logits[..., ::_STRIDE], "logits_last_full": output.logits[:, -1]}
            arrays |= {"logsumexp": output.logits.double().logsumexp(-1), "logits_shape": output.logits.shape}
            if kind == "mixed":
                arrays |= {f"pixel_{name}": value for name, value in pixels.items()}
                arrays |= {"patch_features": patches, "projected": vlm.projector(patches), "fused_embeds": embeds}
                self.patches, self.mixed = patches, batch
            self.write_npz(f"vlm_forward_{kind}.npz", arrays)
            loss, norms = gradient_norms(vlm, "finetune", batch)
            self.write(f"vlm_grad_norms_{kind}.json", {"stage": "finetune", "loss": loss, "norms": norms})
            if kind == "mixed":
                trained = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
                observed["vlm_named_parameters_requires_grad_finetune"] = {
                    name: name in trained for name, _ in vlm.named_parameters()
                }
                samples = {name: p.grad.flatten()[:: max(1, p.numel() // 40)][:40] for name, p in trained.items()}
                self.write_npz("vlm_grads_mixed_sample.npz", samples)
        self.stages()
        vlm.zero_grad(set_to_none=True)
        vlm.eval()

    def stages(self):
        vlm = self.vlm
        batch = self.batch(self.read("collator_text_only.json")["dataset_indices"])
        with torch.no_grad():
            logits = vlm(**batch).logits
        loss, norms = gradient_norms(vlm, "finetune", batch)
        values = {"logits_shape": list(logits.shape), "logsumexp": logits.double().logsumexp(-1).tolist()}
        self.write("vlm_text_only.json", values | {"loss": loss, "grad_norms": norms})
        loss, norms = gradient_norms(vlm, "align", self.batch(range(3), self.data.align))
        values = {"loss": loss, "grad_norms": {name: norm for name, norm in norms.items() if norm is not None}}
        trained = {name: p.requires_grad for name, p in vlm.named_parameters()}
        self.write("vlm_align_stage.json", values | {"requires_grad": trained})
        loss, norms = gradient_norms(vlm, "full-finetune", self.mixed)
        values = {"loss": loss, "grad_norms": norms, "trainable_module_keys": vlm.trainable_module_keys}
        self.write("vlm_full_finetune_stage.json", values)

    def projectors(self):
        vlm, own = self.vlm, self.vlm.projector
        width, patches = self.meta["llm"]["d_model"], self.patches
        with np.load(ORIGINAL / "projectors.npz") as stored:
            arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("ldp_small/")}
        arrays["patch_features"] = patches
        facts = self.read("projectors.json")
        for name, fact in facts.items():
            projector = build_projector(fact["arch_specifier"], patches.shape[-1], width)
            state = projector.state_dict()
            fact["state_dict"] = {key: list(value.shape) for key, value in state.items()}
            fact["init_seed"] = patches.shape[-1]
            fact["init"] = {
                key: {"sum": value.double().sum().item(), "first4": value.flatten()[:4].tolist()}
                for key, value in state.items()
            }
            if fact["arch_specifier"] == self.meta["arch_specifier"]:
                projector = own
            else:
                arrays |= {f"{name}/{key}": value for key, value in state.items()}
            with torch.no_grad():
                output = projector(patches)
            arrays[f"{name}//out"] = output[:, :: 5 if output.shape[1] == 196 else 1]
            fact |= {"out_shape": list(output.shape), "out_norm": output.double().norm().item()}
            vlm.projector = projector
            loss, norms = gradient_norms(vlm, "finetune", self.mixed)
            norms = {key.removeprefix("projector."): v for key, v in norms.items() if key.startswith("projector.")}
            rows, length = self.mixed["input_ids"].shape
            fact |= {"out_sum": output.double().sum().item(), "vlm_loss": loss, "grad_norms": norms}
            fact["fused_shape"] = [rows, length + output.shape[1], width]
        vlm.projector = own
        vlm.zero_grad(set_to_none=True)
        vlm.eval()
        self.write("projectors.json", facts)
        self.write_npz("projectors.npz", arrays)

    @torch.no_grad()
    def generation(self):
        vlm, cases = self.vlm, self.read("generation.json")
        with Image.open(self.folder / "images" / "img0.png") as picture:
            pixels = vlm.preprocess([picture.convert("RGB")])
        over = next(case for case in cases if "over model_max_length" in case["tag"])
        cases.append(over | {"tag": "another over-long prompt", "prompt": "Count. " + over["prompt"]})
        for case in cases:
            if "kwargs" not in case:
                rows = case["input_ids"] if isinstance(case["input_ids"][0], list) else [case["input_ids"]]
                options = GenerationOptions(max_new_tokens=9, eos_token_id=-1)
                ids = vlm.generate_batch_ids(None, rows, options)
                case["new_ids"] = ids if rows is case["input_ids"] else ids[0]
                continue
            prompt = vlm.encode(case["prompt"])[: vlm.max_text_length]
            scores = vlm.prefill(pixels, [prompt])[1][0]
            values, tokens = scores.topk(5)
            ids = vlm.generate_batch_ids(pixels, [prompt], GenerationOptions.from_kwargs(case["kwargs"]))[0]
            text = vlm.decode(ids)
            case |= {"input_ids": prompt, "first_step_top5": [tokens.tolist(), values.tolist()], "new_ids": ids}
            case |= {"n_new": len(ids), "text": text} | (
                {"vlm.generate_text": text} if "vlm.generate_text" in case else {}
            )
        self.write("generation.json", cases)
        state, scores = vlm.prefill(pixels, [cases[0]["input_ids"]])
        llm, steps, first = vlm.llm_backbone.llm, [], scores[0]
        for token in cases[0]["new_ids"]:
            steps.append(scores[0, ::_STRIDE])
            scores = llm.logits(llm(llm.embed(torch.tensor([[token]])), state)[:, -1])
        arrays = {"input_ids": torch.tensor([cases[0]["input_ids"]]), "new_ids": torch.tensor(cases[0]["new_ids"])}
        arrays |= {"first_scores": first, f"step_scores_stride{_STRIDE}": torch.stack(steps)}
        self.write_npz("generation.npz", arrays | {f"pixel_{name}": value for name, value in pixels.items()})
        filters = self.read("sampling_filters.json")
        order = first.argsort(descending=True)
        before = first[order].softmax(0).cumsum(0) - first[order].softmax(0)
        for rule in filters["kept"]:
            name, _, value = rule.partition("=")
            kept = order[: int(value)] if name == "top_k" else order[before < float(value)]
            filters["kept"][rule] = sorted(kept.tolist())
        self.write("sampling_filters.json", filters)

    def initial_values(self):
        torch.manual_seed(1)
        state = MambaLM(read_mamba_config(self.folder / "hf_llm" / "config.json")).state_dict()
        values = {name: [v.double().mean().item(), v.double().std().item()] for name, v in state.items()}
        self.observed["llm_init_mean_std"] = values

    def training(self):
        """Train in a plain loop as Cobra does: its groups, and rates that are one step behind."""
        vlm, run = self.vlm, self.read("train_run.json")
        start = {key: copy.deepcopy(getattr(vlm, key).state_dict()) for key in ("projector", "llm_backbone")}
        vlm.freeze_backbones("finetune")
        vlm.train()
        trained = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
        groups = self.read("param_groups.json")
        for group, decayed in ((group, group["weight_decay"] > 0) for group in groups):
            group["names"] = [n for n, p in trained.items() if decayed == (p.ndim > 1 and not n.endswith(".bias"))]
        self.write("param_groups.json", groups)
        lengths = self.data.finetune.get_modality_lengths()
        sampler, order = SplitModalitySampler(None, lengths, run["gbs"], 1, 0, run["seed"]), []
        for epoch in range(_EPOCHS):
            sampler.set_epoch(epoch)
            order += list(sampler)
        total = len(order) // run["gbs"]
        logged = [learning_rate(step, total, run["lr"], run["warmup_ratio"]) for step in range(1, total)] + [0.0]
        run |= {"epochs": _EPOCHS, "max_steps": None, "sampler_order_epoch0": order[: len(order) // _EPOCHS]}
        run |= {"lr_logged_after_step": logged, "micro_batches": [], "grad_norm_before_clip_by_step": []}
        options = [{**g, "params": [trained[name] for name in g["names"]]} for g in groups]
        optimizer = torch.optim.AdamW(options, lr=run["lr"])
        for step, rate in enumerate([0.0, *logged[:-1]]):
            rows = order[step * run["gbs"] : (step + 1) * run["gbs"]]
            batches = [self.batch(rows[place : place + run["bs"]]) for place in range(0, len(rows), run["bs"])]
            counts = [int(count_targets(batch["labels"], batch["multimodal_indices"])) for batch in batches]
            for batch, count in zip(batches, counts, strict=True):
                loss = vlm(**batch, loss_reduction="sum").loss
                (loss / sum(counts)).backward()
                shape, images = batch["input_ids"].shape, batch["multimodal_indices"].tolist()
                fact = {"loss": loss.item() / max(count, 1), "n": shape[0], "seq_len": shape[1]}
                run["micro_batches"].append(fact | {"multimodal_indices": images, "n_label_tokens": count})
            norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), run["max_grad_norm"])
            run["grad_norm_before_clip_by_step"].append(norm.item())
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        norms = {n: [p.detach().double().norm().item(), p.detach().double().sum().item()] for n, p in trained.items()}
        self.write_npz("train_run_params.npz", {name: torch.tensor(v).double() for name, v in norms.items()})
        self.run_directory(run, start)

    def run_directory(self, run, start):
        config = self.read("run/config.json")
        config["model"] |= {name: self.meta[name] for name in config["model"].keys() & self.meta.keys()}
        config["model"] |= {"type": self.meta["model_id"], "finetune_epochs": _EPOCHS, "finetune_max_steps": None}
        name = config["run_id"] = f"tiny-cot+{self.meta['model_id']}+stage-finetune+x{run['seed']}"
        self.write("run/config.json", config)
        (self.folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
        torch.save({"model": start}, self.folder / "run" / "checkpoints" / "latest-checkpoint.pt")
        steps, loss = len(run["lr_logged_after_step"]), run["micro_batches"][-1]["loss"]
        step_file = f"checkpoints/step-{steps:06d}-epoch-{_EPOCHS:02d}-loss={loss:.4f}.pt"
        files = ["checkpoints/latest-checkpoint.pt", step_file, "config.json", "config.yaml", "run-metrics.jsonl"]
        run["checkpoint_files"] = self.observed["run_dir_files"] = [*files, f"{name}.jsonl"]
        self.write("train_run.json", run)
        self.observed["checkpoint_top_keys"] = {"model": {key: len(state) for key, state in start.items()}}
        self.observed["checkpoint_key_sample"] = [key for state in start.values() for key in list(state)[:4]]
        metrics, size = Metrics(("jsonl",), "run", self.folder, {}, "finetune"), run["grad_accumulation_steps"]
        for step, rate in enumerate(run["lr_logged_after_step"]):
            losses = [one["loss"] for one in run["micro_batches"][step * size : (step + 1) * size]]
            metrics.commit(step + 1, sum(losses) / size, rate, grad_norm=1.0, tokens=1, rows=1)
        metrics.finalize()
        kept = self.read("observed.json")["run_id_jsonl_lines"][0].keys()
        lines = [json.loads(line) for line in (self.folder / "run.jsonl").read_text().splitlines()]
        self.observed["run_id_jsonl_lines"] = [{key: line[key] for key in kept} for line in lines]
