"""The tokenizer of `cobra-tiny`: byte-level BPE in the form of GPT-NeoX, the one of Cobra's language models.

Form (EleutherAI/gpt-neox-20b, tokenizer.json): NFC, byte-level pieces without a leading space, all 256 bytes in the
vocabulary, `<|endoftext|>` with id 0 as end, beginning and unknown token, `<|padding|>` with id 1, nothing added to a
text. The tags of LLaVA-CoT and the chat markup are ordinary text there, hence here.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cobra.demo.captions import canonical_caption, reference_captions
from cobra.demo.places import ask_places
from cobra.demo.questions import CAPTION_PROMPTS, KINDS, MORE, ask
from cobra.demo.scenes import random_scene
from cobra.util.files import write_json, write_text

END_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|padding|>"
VOCABULARY_SIZE = 768

_SEED = 7
_SCENES = 2_000
# The demonstration's words fill most of the vocabulary; the rest goes to the commonest pieces of this English text,
# so that captions of photos and reasoning prompts don't fall apart into bytes.
_ENGLISH = """
Yes
No
True
False
Yes, it is true. No, it is false. True or False? Yes or No?
A man and a woman are standing next to a table with food on it. A group of people sitting on a bench in the park.
A cat is lying on the bed and a dog is looking out of the window. A bus is driving down a city street with cars.
Two men are riding horses on the beach. A small child is holding a white ball in his hand near the water.
Think step by step about what you can see in the image: the objects, their number, their colours and their positions.
Then use your analysis to answer the question. Here is the answer that you have given, with the reason for it.
This is one of the things that should be said about it: there was not more than this, so we will have it as they had.
Some people were walking through a room while others were playing a game with their phone, after which she ate a slice
of pizza from a large plate in front of her. He wears a black shirt and stands behind a wooden chair under a tree.
An old train is coming into the station; several birds fly over the field; a young girl skates between two buildings.
Because the light comes from the side, the first object must be closer than the second, and the correct option is B.
"""
_ENGLISH_REPEATS = 12


def training_texts() -> Iterator[str]:
    """Yield the texts that the vocabulary is made from, in a fixed order."""
    rng = random.Random(_SEED)
    for index in range(_SCENES):
        scene = random_scene(rng, "train")
        yield from (f"<|user|>\n{prompt}" for prompt in CAPTION_PROMPTS)
        yield f"\n<|assistant|>\n{canonical_caption(scene)}"
        # References are wordier than anything that is learned: every other scene's are enough.
        if index % 2:
            yield from reference_captions(rng, scene)
        question, answer = ask_places(rng, scene)
        yield f"<|user|>\n{question}"
        yield f"\n<|assistant|>\n{answer}"
        for kind in (*KINDS, MORE):
            exchange = ask(rng, scene, kind)
            if exchange:
                yield f"<|user|>\n{exchange.question}"
                yield f"\n<|assistant|>\n{exchange.answer}"
    for _ in range(_ENGLISH_REPEATS):
        yield _ENGLISH


def train_tokenizer() -> Tokenizer:
    """Train the tokenizer; the same version of `tokenizers` gives the same vocabulary every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [AddedToken(token, normalized=False, special=True) for token in (END_TOKEN, PAD_TOKEN)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def write_tokenizer(folder: Path | str) -> Tokenizer:
    """Train the tokenizer and write `tokenizer.json` and `tokenizer_config.json` into a folder."""
    folder = Path(folder)
    tokenizer = train_tokenizer()
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_TOKEN,
            "eos_token": END_TOKEN,
            "unk_token": END_TOKEN,
            "pad_token": PAD_TOKEN,
            # Without this, decoding would drop spaces in front of punctuation.
            "clean_up_tokenization_spaces": False,
        },
    )
    return tokenizer
