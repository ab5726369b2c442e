"""The parts of lmms-eval 0.7.3 that its models are built on, with the same names and signatures, where it is absent."""

import importlib.util
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None

    def to_dict(self):
        return {name: value for name, value in vars(self).items() if name.endswith("_tokens") and value is not None}


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)
    task_name: str | None = None
    doc_id: Any = None

    def __post_init__(self):
        self.task_name, self.doc_id = self.metadata["task"], self.metadata["doc_id"]

    @property
    def args(self):
        return self.arguments


class lmms:  # noqa: N801 - as it is called there
    is_simple = True

    def __init__(self):
        self._rank = 0
        self._world_size = 1
        self.task_dict = {}

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


MODULES = {
    "lmms_eval": (),
    "lmms_eval.api": (),
    "lmms_eval.api.instance": (TokenCounts, GenerationResult, Instance),
    "lmms_eval.api.model": (lmms,),
    "lmms_eval.models": (),
    "lmms_eval.models.registry_v2": (ModelManifest,),
}


def is_installed():
    """Return True if the real program is."""
    spec = importlib.util.find_spec("lmms_eval")
    return spec is not None and spec.origin is not None


def provide(patch):
    """Put the stand-in into `sys.modules` by a MonkeyPatch, unless the real program is installed."""
    if is_installed():
        return
    for name, classes in MODULES.items():
        module = ModuleType(name)
        vars(module).update({each.__name__: each for each in classes})
        patch.setitem(sys.modules, name, module)
