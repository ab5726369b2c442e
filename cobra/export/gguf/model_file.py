"""The language model as a GGUF file of llama.cpp's architecture `mamba`, tokenizer and prompt format included."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from cobra.models.backbones.llm import MambaLLMBackbone
from cobra.models.mamba import MambaLM
from cobra.models.mamba.mamba1 import Mamba1Mixer
from cobra.util.errors import UserError

_KINDS = {
    "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
# The state has constant size; programs ask for some length all the same.
_CONTEXT = 2**20
# A conversation in the prompt format, for programs that chat in text; `{first}` is around a human message.
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% if not loop.first %}{{ '\\n' }}{% endif %}BEFORE{{ message['content'] }}AFTER"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}END{% endif %}"
    "{% endfor %}"
)


def check_exportable(llm: MambaLM) -> None:
    """Raise a UserError where llama.cpp cannot run a language model."""
    config = llm.config
    odd = {
        f"its mixer is {config.mixer!r}": type(llm.backbone.layers[0].mixer) is not Mamba1Mixer,
        f"its mixer is {config.expand} times as wide as the model": config.expand != 2,
        "its projections have biases": config.proj_bias,
    }
    if problems := [problem for problem, is_so in odd.items() if is_so]:
        raise UserError(
            f"the language model cannot be written for llama.cpp: {' and '.join(problems)}; expected Mamba1, twice as "
            "wide, without biases. --format onnx takes any Mamba1"
        )


def write_gguf(backbone: MambaLLMBackbone, path: Path, name: str, dtype: str) -> None:
    """Write a language model.

    Args:
        backbone: The language model, in fp32, and its tokenizer.
        path: File to write.
        name: Name of the model.
        dtype: Kind of the matrices: `fp32`, `fp16` or `bf16`; all else is fp32.
    """
    kind, file_type = _KINDS[dtype]
    writer = gguf.GGUFWriter(path, "mamba")
    config = backbone.llm.config
    writer.add_name(name)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layer)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    # Mamba has neither; readers require both.
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(config.d_conv)
    writer.add_ssm_inner_size(config.d_inner)
    writer.add_ssm_state_size(config.d_state)
    writer.add_ssm_time_step_rank(config.rank)
    writer.add_ssm_dt_b_c_rms(False)
    writer.add_file_type(file_type)
    _add_tokenizer(writer, backbone)
    for tensor, values, is_matrix in _tensors(backbone.llm):
        chosen = kind if is_matrix else gguf.GGMLQuantizationType.F32
        array = np.ascontiguousarray(values.detach().float().cpu().numpy())
        writer.add_tensor(tensor, gguf.quants.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(llm: MambaLM) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield tensors by llama.cpp's names, and True for the matrices, which may be written in half precision."""
    yield "token_embd.weight", llm.backbone.embedding.weight, True
    yield "output_norm.weight", llm.backbone.norm_f.weight, False
    block: Any
    for index, block in enumerate(llm.backbone.layers):
        mixer = block.mixer
        bias = mixer.conv1d.bias
        tensors = {
            "attn_norm.weight": (block.norm.weight, False),
            "ssm_in.weight": (mixer.in_proj.weight, True),
            "ssm_conv1d.weight": (mixer.conv1d.weight.squeeze(1), False),
            "ssm_conv1d.bias": (mixer.D.new_zeros(mixer.D.shape) if bias is None else bias, False),
            "ssm_x.weight": (mixer.x_proj.weight, True),
            "ssm_dt.weight": (mixer.dt_proj.weight, True),
            "ssm_dt.bias": (mixer.dt_proj.bias, False),
            "ssm_a": (-mixer.A_log.float().exp(), False),
            "ssm_d": (mixer.D, False),
            "ssm_out.weight": (mixer.out_proj.weight, True),
        }
        yield from ((f"blk.{index}.{name}", *tensor) for name, tensor in tensors.items())


def _add_tokenizer(writer: gguf.GGUFWriter, backbone: MambaLLMBackbone) -> None:
    """Write the byte-level BPE of GPT-NeoX's kind; ids of the padded vocabulary that mean nothing are unused."""
    tokenizer: Any = backbone.tokenizer
    content = _bpe(tokenizer)
    size = backbone.llm.config.padded_vocab_size
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, number in content["model"]["vocab"].items():
        tokens[number], kinds[number] = token, gguf.TokenType.NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    merges = content["model"]["merges"]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template(backbone))


def _bpe(tokenizer: Any) -> dict[str, Any]:
    """Return a tokenizer's `tokenizer.json`; a UserError where it is not byte-level BPE with GPT-2's pieces."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = content["model"]["type"], (content["pre_tokenizer"] or {}).get("type")
    if kinds != ("BPE", "ByteLevel"):
        raise UserError(
            f"the tokenizer is {kinds[0]} after {kinds[1]}, and only GPT-NeoX's kind, BPE after ByteLevel, can be "
            "written for llama.cpp; --format onnx takes any"
        )
    return content


def chat_template(backbone: MambaLLMBackbone) -> str:
    """Return the prompt format as a template of Jinja over `messages` of users and assistants."""
    builder = backbone.prompt_builder_fn(model_family="cobra")
    builder.add_turn("human", "{message}")
    before, _, after = builder.get_prompt().partition("{message}")
    parts = {"BEFORE": before, "AFTER": after, "END": builder.end}
    template = _TEMPLATE
    for name, text in parts.items():
        template = template.replace(name, f"{{{{ {text!r} }}}}")
    return template
