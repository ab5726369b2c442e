"""Fetch all files of a model into the hub's cache, so that it loads where there is no network."""

from cobra.models.backbones.llm.backbone import fetch_llm_files
from cobra.models.backbones.llm.specs import llm_spec
from cobra.models.load import get_vision_backbone_and_transform
from cobra.models.run_folder import find_checkpoint


def prefetch_model(model_id_or_path: str, hf_token: str | None = None, with_bare_llm: bool = False) -> None:
    """Fetch the checkpoint, the language model's configuration and tokenizer, and the vision towers' weights.

    The towers, 3 GB of main memory for `cobra+3b`, are built as a run builds them, so that the same files are there.

    Args:
        model_id_or_path: A model's id or name, or a run directory, whose backbones are fetched.
        hf_token: Access token of the hub, for closed repositories.
        with_bare_llm: Fetch the bare language model's weights too, which no finetuned checkpoint needs.

    Raises:
        UserError: A file cannot be found or fetched.
    """
    fields = find_checkpoint(model_id_or_path, hf_token).fields
    fetch_llm_files(llm_spec(fields["llm_backbone_id"]), hf_token, with_bare_llm)
    get_vision_backbone_and_transform(fields["vision_backbone_id"], fields["image_resize_strategy"])
