"""Signature line: names all that scores depend on, so that scores with equal lines can be compared."""

from collections.abc import Mapping

# Of a SHA-256, in hex digits: 48 bits tell any two checkpoints apart.
_DIGITS = 12


def signature_line(
    *,
    n: int,
    tokenizer: str,
    idf: str | None,
    versions: Mapping[str, str | None],
    prompt_sha256: str | None = None,
    decoding: Mapping[str, int | float | bool | str] | None = None,
    checkpoints: Mapping[str, str] | None = None,
) -> str:
    """Return the line: `name:value` parts with `|` between, which no value holds.

    Args:
        n: Images scored.
        tokenizer: Tokenizer of the metrics.
        idf: Where CIDEr's document frequencies come from; None where there is no CIDEr.
        versions: Version by package, in the order to be shown; those that are None are left out.
        prompt_sha256: Digest of all wordings, in hex; None without a model.
        decoding: How tokens are chosen, by setting; `do_sample` false is written `greedy`. None without a model.
        checkpoints: SHA-256 in hex by the model's role.
    """
    parts = [("n", str(n)), ("tok", tokenizer)]
    if idf is not None:
        parts.append(("idf", idf))
    if prompt_sha256 is not None:
        parts.append(("prompt", prompt_sha256[:_DIGITS]))
    if decoding is not None:
        parts.append(("decoding", ",".join(_setting(name, value) for name, value in decoding.items())))
    parts += [(f"{role}.sha256", digest[:_DIGITS]) for role, digest in (checkpoints or {}).items()]
    parts += [(package, version) for package, version in versions.items() if version is not None]
    return "|".join(f"{name}:{_one_part(value)}" for name, value in parts)


def _setting(name: str, value: int | float | bool | str) -> str:
    if name == "do_sample":
        return "sampled" if value else "greedy"
    return f"{name}={value}"


def _one_part(value: str) -> str:
    """Return a value without what would end its part or the line."""
    return "-".join(value.replace("|", "/").split())
