"""Answer questions about pictures with an exported folder on onnxruntime: `python answer.py photo.jpg "question"`.

This module goes along with an export, as `answer.py`; see `frontend.py` for the packages that it needs. The loop is
that of any recurrent model: read [image features ; prompt] once into a state of constant size, then a token at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cobra.export.onnx.frontend import MAX_NEW_TOKENS, FrontendRunner, main


class Runner(FrontendRunner):
    """An exported model on onnxruntime."""

    def __init__(
        self, folder: Path | str, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        """See :class:`cobra.export.onnx.frontend.FrontendRunner`."""
        super().__init__(folder, threads, providers)
        self._prefill, self._decode = (self._open_graph(name) for name in ("prefill.onnx", "decode.onnx"))
        self._state = self.frontend.inputs["state"]

    def write(
        self, features: np.ndarray | None, prompts: Sequence[Sequence[int]], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> tuple[list[list[int]], np.ndarray]:
        """See :meth:`FrontendRunner.write`."""
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


if __name__ == "__main__":
    main(Runner)
