"""Chat templates of the prompt formats, in Jinja, for tokenizers of transformers.

They write what :mod:`cobra.models.backbones.llm.prompting` writes, with the placeholder of the image, wherever in the
conversation it was, before everything.
"""

from cobra.models.backbones.llm.prompting import MambaPromptBuilder, PromptBuilder, ZephyrChatPromptBuilder
from cobra.util.conversation import PLACEHOLDER, SPECIAL_TOKENS
from cobra.util.errors import UserError

# Human and assistant turns: what stands before a message and after it.
_TURNS = {
    ZephyrChatPromptBuilder: ("<|user|>\n", "<|endoftext|>\n", "<|assistant|>\n"),
    MambaPromptBuilder: ("In: ", "\n", "Out: "),
}

_TEMPLATE = """\
{%- set ns = namespace(images='', turns='') -%}
{%- for message in messages -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('Turns must alternate, starting with user, and this model has no system prompt') -}}
{%- endif -%}
{%- set part = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set part.text = message['content'] -%}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{%- set ns.images = ns.images + 'PLACEHOLDER' -%}
{%- elif item['type'] == 'text' -%}
{%- set part.text = part.text + item['text'] -%}
{%- else -%}
{{- raise_exception('This model takes text and images, not ' + item['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set pieces = part.text.split('PLACEHOLDER') -%}
{%- set ns.images = ns.images + 'PLACEHOLDER' * (pieces | length - 1) -%}
{%- set part.text = pieces | join('') -%}
{%- for special in SPECIALS -%}
{%- set part.text = part.text.split(special) | map('trim', ' \\t') | join(' ') -%}
{%- endfor -%}
{%- set text = part.text.strip() -%}
{%- if message['role'] == 'user' -%}
{%- set ns.turns = ns.turns + ('' if loop.first else '\\n') + 'BEFORE' + text + 'AFTER' -%}
{%- if not loop.last or add_generation_prompt -%}
{%- set ns.turns = ns.turns + 'HEADER' -%}
{%- endif -%}
{%- else -%}
{%- set ns.turns = ns.turns + (text or ' ') + 'END' -%}
{%- endif -%}
{%- endfor -%}
{{- ns.images + ns.turns -}}
"""


def chat_template(builder: type[PromptBuilder]) -> str:
    """Return the template of a prompt format; a UserError where it has none."""
    if builder not in _TURNS:
        raise UserError(f"the prompt format {builder.__name__} has no chat template in transformers")
    before, after, header = (text.replace("\n", "\\n") for text in _TURNS[builder])
    words = {"PLACEHOLDER": PLACEHOLDER, "SPECIALS": repr(list(SPECIAL_TOKENS)), "END": builder.end}
    words |= {"BEFORE": before, "AFTER": after, "HEADER": header}
    template = _TEMPLATE
    for name, text in words.items():
        template = template.replace(name, text)
    return template
