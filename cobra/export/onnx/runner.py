"""Answer questions about pictures with an exported folder on onnxruntime: `python answer.py photo.jpg "question"`.

This module goes along with an export, as `answer.py`; see `frontend.py` for the packages that it needs. The loop is
that of any recurrent model: read [image features ; prompt] once into a state of constant size, then a token at a time.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from cobra.export.onnx.frontend import Frontend

MAX_NEW_TOKENS = 512


class Runner:
    """An exported model on onnxruntime.

    Attributes:
        frontend: Its tokenizer, prompt format and towers.
    """

    def __init__(
        self, folder: Path | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        """Open the three graphs of a folder.

        Args:
            folder: The exported folder.
            threads: Threads of an operation; 0 is onnxruntime's choice.
            providers: Devices of onnxruntime, the preferred one first.

        Raises:
            ValueError: The folder is not of a form that this version knows.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        folder = Path(folder)
        self.frontend = Frontend(folder, options, providers)
        self._prefill, self._decode = (
            onnxruntime.InferenceSession(folder / name, options, providers=list(providers))
            for name in ("prefill.onnx", "decode.onnx")
        )
        self._state = self.frontend.inputs["state"]

    def answer(
        self,
        pictures: Sequence[Image.Image | None],
        questions: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = 16,
    ) -> list[str]:
        """Answer questions greedily, each about its picture or, with None, about none.

        Raises:
            ValueError: There are not as many pictures as questions, or a question is too long.
        """
        answers = [""] * len(questions)
        for rows in batches_of(pictures, batch_size):
            several = [picture for picture in (pictures[row] for row in rows) if picture is not None]
            features = self.frontend.features(several) if several else None
            prompts = [self.frontend.prompt(questions[row]) for row in rows]
            written, _ = self.write(features, prompts, max_new_tokens)
            for row, ids in zip(rows, written, strict=True):
                answers[row] = self.frontend.text(ids)
        return answers

    def write(
        self, features: np.ndarray | None, prompts: Sequence[Sequence[int]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> tuple[list[list[int]], np.ndarray]:
        """Go on with prompts of any lengths greedily.

        Args:
            features: Image features (rows, positions, d_model) before each prompt, or None for text alone.
            prompts: Ids of each prompt, at least one each.
            max_new_tokens: Most tokens of an answer, at least 1.

        Returns:
            The ids of each answer, the end token included, and the scores of each first token (rows, vocabulary).
        """
        first, state = self.read(features, prompts)
        answers: list[list[int]] = [[] for _ in prompts]
        rows, scores = list(range(len(prompts))), first
        while True:
            chosen = scores.argmax(-1)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                answers[row].append(token)
            going = [place for place, row in enumerate(rows) if not self._has_ended(answers[row], max_new_tokens)]
            if not going:
                return answers, first
            if len(going) < len(rows):
                rows, chosen = [rows[place] for place in going], chosen[going]
                state = {name: part[:, going] for name, part in state.items()}
            scores, *parts = self._decode.run(None, {"input_ids": chosen.reshape(-1, 1), **state})
            state = dict(zip(state, parts, strict=True))

    def read(
        self, features: np.ndarray | None, prompts: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Read image features and prompts; return the scores of the next token, and the state after each row."""
        count, width = len(prompts), self.frontend.inputs["d_model"]
        if features is None:
            features = np.zeros((count, 0, width), np.float32)
        positions, longest = features.shape[1], max(len(prompt) for prompt in prompts)
        ids = np.full((count, longest), self.frontend.inputs["ids"]["padding"], np.int64)
        mask = np.zeros((count, positions + longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : positions + len(prompt)] = 1
        state = {
            name: np.zeros([count if side == "batch" else side for side in shape], np.float32)
            for name, shape in self._state.items()
        }
        feed = {"image_features": features, "input_ids": ids, "attention_mask": mask, **state}
        scores, *parts = self._prefill.run(None, feed)
        return scores, dict(zip(state, parts, strict=True))

    def _has_ended(self, answer: list[int], most: int) -> bool:
        return answer[-1] == self.frontend.end or len(answer) >= most


def batches_of(pictures: Sequence[Image.Image | None], size: int) -> list[list[int]]:
    """Return the indices of the questions in batches, those with a picture apart from those without."""
    kinds: list[list[int]] = [[], []]
    for row, picture in enumerate(pictures):
        kinds[picture is None].append(row)
    return [kind[start : start + size] for kind in kinds for start in range(0, len(kind), size)]


def main() -> None:
    """Answer one question from the command line, with the folder that this file lies in."""
    parser = argparse.ArgumentParser(description="Answer a question about a picture on onnxruntime.")
    parser.add_argument("picture", help="Path of the picture, or - for a question without one.")
    parser.add_argument("question")
    parser.add_argument("--max_new_tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="The exported folder.")
    args = parser.parse_args()
    picture = None if args.picture == "-" else Image.open(args.picture)
    print(Runner(args.folder).answer([picture], [args.question], args.max_new_tokens)[0])


if __name__ == "__main__":
    main()
