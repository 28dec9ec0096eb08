"""The model that answers when none is named: small, made here, and not trained yet."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from geollava.configuration import GeoLlavaConfig
from geollava.modeling import GeoLlavaForConditionalGeneration
from geollava.processing import IMAGE_TOKEN, VIDEO_TOKEN, GeoLlavaImageProcessor, GeoLlavaProcessor

NAME = "untrained-v1"  # a new name for new contents: caches hold the old ones
SEED = 8000


def default_checkpoint() -> Path:
    """The folder of the default checkpoint, made on first use in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geollava"
    folder = cache / NAME
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=cache))
    try:
        processor, model = build()
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was first; its copy is the same
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def build() -> tuple[GeoLlavaProcessor, GeoLlavaForConditionalGeneration]:
    """Processor and model with random weights, the same on every machine."""
    tokenizer = byte_tokenizer()
    config = GeoLlavaConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vision_tower_name="vision_tower",
        untrained=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = GeoLlavaForConditionalGeneration(config)
    processor = GeoLlavaProcessor(
        GeoLlavaImageProcessor.from_config(config),
        tokenizer,
        num_keep=config.num_keep,
        tokens_per_frame=config.tokens_per_frame,
    )
    return processor, model.eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: reads any language, and needs no vocabulary from elsewhere."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, VIDEO_TOKEN]
    core.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
