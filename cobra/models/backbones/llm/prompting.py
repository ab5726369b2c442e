"""Prompt formats: conversations built turn by turn, each turn returned as it stands in the prompt."""

from abc import ABC, abstractmethod

from cobra.util.conversation import ROLES, without_placeholder
from cobra.util.errors import UserError


class PromptBuilder(ABC):
    """A conversation between `human` and `gpt`, in turns that alternate and start with the human.

    Attributes:
        model_family: Name of the model's kind.
        system_prompt: Kept for the caller; none of the formats writes it.
        turn_count: Turns so far.
    """

    end = "<|endoftext|>"

    def __init__(self, model_family: str, system_prompt: str | None = None) -> None:
        self.model_family = model_family
        self.system_prompt = system_prompt
        self.turn_count = 0
        # Joined when they are asked for: adding texts up costs the square of their number.
        self._turns: list[str] = []

    def add_turn(self, role: str, message: str) -> str:
        """Add a turn; every `<image>` is removed from it, and white space around it.

        Args:
            role: `human` and `gpt` by turns.
            message: The text; an empty answer is written as a space, so that it has a token of its own.

        Returns:
            The turn as it stands in the prompt.

        Raises:
            UserError: It is the other's turn.
        """
        expected = ROLES[self.turn_count % 2]
        if role != expected:
            raise UserError(
                f"turn {self.turn_count + 1} of the conversation is from {role!r}, expected {expected!r}: turns must "
                "alternate, starting with 'human'"
            )
        message = without_placeholder(message)
        turn = self._human(message) if role == "human" else f"{message or ' '}{self.end}"
        self.turn_count += 1
        self._turns.append(turn)
        return turn

    def get_potential_prompt(self, message: str) -> str:
        """Return the prompt as it would be with one more human message, taken as it is."""
        return "".join([*self._turns, self._question(message).rstrip(self._open_end)])

    def get_prompt(self) -> str:
        """Return the conversation so far."""
        return "".join(self._turns).rstrip(self._open_end)

    # What is cut from the end of a prompt that waits for an answer.
    _open_end = ""

    def _human(self, message: str) -> str:
        """Return a human turn; those after the first start on a new line."""
        return self._question(message) if self.turn_count == 0 else f"\n{self._question(message)}"

    @abstractmethod
    def _question(self, message: str) -> str:
        """Return a human message with the markup around it, up to where the answer starts."""


class ZephyrChatPromptBuilder(PromptBuilder):
    """Zephyr's chat: `<|user|>`, the message, the end token, `<|assistant|>`."""

    def _question(self, message: str) -> str:
        return f"<|user|>\n{message}{self.end}\n<|assistant|>\n"


class MambaPromptBuilder(PromptBuilder):
    """`In: ... Out: ...` with GPT-NeoX's end token."""

    def _question(self, message: str) -> str:
        return f"In: {message}\nOut: "


class PurePromptBuilder(MambaPromptBuilder):
    """`In: ... Out: ...` with Llama's end token, no line break between turns, and no space after an open `Out:`."""

    end = "</s>"
    _open_end = " "

    def _human(self, message: str) -> str:
        return self._question(message)
