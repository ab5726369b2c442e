"""Prompt formats of the language models, built turn by turn."""

from cobra.models.backbones.llm.prompting.prompt_builders import (
    MambaPromptBuilder,
    PromptBuilder,
    PurePromptBuilder,
    ZephyrChatPromptBuilder,
)

__all__ = ["MambaPromptBuilder", "PromptBuilder", "PurePromptBuilder", "ZephyrChatPromptBuilder"]
