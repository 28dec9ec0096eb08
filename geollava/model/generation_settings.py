"""What a checkpoint's `generation_config.json` may hold: transformers takes it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geollava.common.readable import FileError, named
from geollava.model.checkpoint import read_json

# The type of each setting.
GENERATION_SETTINGS: dict[Any, tuple[tuple[str, ...], str]] = {
    bool: (
        (
            "do_sample",
            "use_cache",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "output_logits",
            "return_dict_in_generate",
            "renormalize_logits",
            "remove_invalid_values",
        ),
        "true or false",
    ),
    int: (
        (
            "max_length",
            "max_new_tokens",
            "min_length",
            "min_new_tokens",
            "num_beams",
            "num_beam_groups",
            "num_return_sequences",
            "no_repeat_ngram_size",
            "top_k",
        ),
        "a whole number",
    ),
    (int, float): (
        (
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "length_penalty",
            "guidance_scale",
            "max_time",
        ),
        "a number",
    ),
}
MAX_BEAMS = 64
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_generation(path: Path) -> None:
    """A `generation_config.json` that transformers can generate with.

    Raises:
        ValueError: a setting of another type or beyond its range; names the file.
    """
    from transformers import GenerationConfig  # late: transformers imports this package

    content = read_json(path)
    for kind, (names, what) in GENERATION_SETTINGS.items():
        for name in names:
            value = content.get(name)
            good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if value is not None and not good:
                raise FileError(f"{path}: {name} must be {what}, got {value!r}")
    for name in ("num_beams", "num_return_sequences", "num_beam_groups"):
        if not 1 <= (content.get(name) or 1) <= MAX_BEAMS:
            raise FileError(
                f"{path}: {name} must be between 1 and {MAX_BEAMS}, got {content[name]}"
            )
    with named(path, "the model cannot generate with it"):
        for name in TOKEN_IDS:
            check_ids(name, content.get(name))
        GenerationConfig.from_dict(content).validate()


def check_ids(name: str, value: Any) -> None:
    """A token's id, a list of ids, or None."""
    for number in value if isinstance(value, list) else [value]:
        good = isinstance(number, int) and not isinstance(number, bool)
        if number is not None and not (good and -1 <= number < 2**31):
            raise ValueError(f"{name} must be a token's id, got {number!r}")
