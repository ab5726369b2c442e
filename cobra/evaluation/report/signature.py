"""Signature line: names all that scores depend on, so that scores with equal lines can be compared."""

from collections.abc import Mapping
from typing import Any

# Of a SHA-256, in hex digits: 48 bits tell any two checkpoints apart.
_DIGITS = 12


def signature_line(n: int, tokenizer: str, idf: str | None, about: Mapping[str, Any]) -> str:
    """Return the line: `name:value` parts with `|` between, which no value holds.

    Args:
        n: Images scored.
        tokenizer: Tokenizer of the metrics.
        idf: Where CIDEr's document frequencies come from; None where there is no CIDEr.
        about: Entries of `metrics.json`: `code`, `versions`; of models `prompt_sha256`, `decoding` and `checkpoints`.
    """
    parts = [("n", str(n)), ("tok", tokenizer)]
    if idf is not None:
        parts.append(("idf", idf))
    if "prompt_sha256" in about:
        parts.append(("prompt", about["prompt_sha256"][:_DIGITS]))
    if "decoding" in about:
        decoding = (f"{name}={value}" for name, value in about["decoding"].items() if name != "do_sample")
        parts.append(("decoding", ",".join(["sampled" if about["decoding"]["do_sample"] else "greedy", *decoding])))
    parts += [(f"{role}.sha256", model["sha256"][:_DIGITS]) for role, model in about.get("checkpoints", {}).items()]
    versions = {"cobra-vlm": about["code"]["cobra-vlm"], **about["versions"]}
    parts += [(package, version) for package, version in versions.items() if version is not None]
    # A value has nothing that would end its part or the line.
    return "|".join(f"{name}:{'-'.join(value.replace('|', '/').split())}" for name, value in parts)
