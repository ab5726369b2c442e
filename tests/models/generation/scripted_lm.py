"""A language model that follows a script: the scores of the next token are a function of all that was read.

Its tokens are characters, token 0 ends an answer, and its state is the number of a history, so that a state that was
copied, repeated, gathered or mixed up shows in what it goes on to say.
"""

import re

import torch

from cobra.models.generation.stage_guard import TokenTexts
from cobra.models.mamba import MambaConfig, MambaState
from cobra.reasoning.trace import STAGE_TAGS

VOCABULARY = 128
END = 0


def decode(ids):
    return "".join(chr(token) for token in ids if token != END)


def encode(text):
    return [ord(character) for character in text]


TEXTS = TokenTexts(decode, encode)


class ScriptedLM:
    """Takes the place of MambaLM where answers are written.

    script: From the text read so far to the chances of the next character; they need not sum to 1.
    """

    config = MambaConfig(d_model=1, n_layer=1, vocab_size=VOCABULARY, d_state=1, d_conv=1, expand=1)

    lm_head = torch.nn.Linear(1, VOCABULARY)

    def __init__(self, script):
        self.script = script
        self.histories = [""]
        self.numbers = {"": 0}
        # Rows, and tokens of each, of every pass.
        self.passes = []

    def start(self, *texts):
        """The state and the first scores after prompts."""
        state = MambaState.zeros(self.config, len(texts), "cpu")
        for row, text in enumerate(texts):
            state["ssm"][0, row] = self.number(text)
        return state, self.logits(state["ssm"][0, :, 0])

    def number(self, history):
        if history not in self.numbers:
            self.numbers[history] = len(self.histories)
            self.histories.append(history)
        return self.numbers[history]

    def embed(self, ids):
        return ids.unsqueeze(-1).float()

    def __call__(self, embeds, state, lengths=None):
        rows, steps = embeds.shape[:2]
        self.passes.append((rows, steps))
        hidden = torch.full((rows, steps, 1), float("nan"))
        for row in range(rows):
            history = self.histories[int(state["ssm"][0, row, 0, 0])]
            for step in range(steps if lengths is None else int(lengths[row])):
                history += chr(int(embeds[row, step, 0]))
                hidden[row, step, 0] = self.number(history)
            state["ssm"][0, row] = self.number(history)
        return hidden

    def logits(self, hidden):
        scores = torch.full((len(hidden), VOCABULARY), -torch.inf)
        for row, number in enumerate(hidden.flatten().tolist()):
            for character, chance in self.script(self.histories[int(number)]).items():
                scores[row, ord(character)] = torch.tensor(chance).log()
        # Nothing is impossible to a language model.
        return scores.clamp(min=-30)


_STAGE = re.compile(r"\s*<(?P<tag>[A-Z]+)> (?P<letter>.) </(?P=tag)>")


def letters_of(answer):
    """The letters that the closed stages of an answer hold."""
    return "".join(stage["letter"] for stage in _STAGE.finditer(answer))


def four_stages(choices):
    """A script of four stages, a letter in each, after a prompt that ends in `|`.

    choices: From the prompt and the letters of the stages before to the chances of the next letter.
    """

    def script(history):
        prompt, _, answer = history.partition("|")
        letters = letters_of(answer)
        if len(letters) == len(STAGE_TAGS):
            return {chr(END): 1.0}
        tag = STAGE_TAGS[len(letters)]
        rest = answer[[0, *(stage.end() for stage in _STAGE.finditer(answer))][-1] :]
        opening = ("\n\n" if letters else "") + f"<{tag}> "
        if rest == opening:
            return choices(prompt, letters)
        whole = f"{opening}{rest[len(opening) : len(opening) + 1]} </{tag}>"
        return {whole[len(rest)]: 1.0} if whole.startswith(rest) and len(rest) < len(whole) else {chr(END): 1.0}

    return script
