"""The model that answers when none is named: small, made here, and not trained yet.

Its language model is random and talks gibberish. Its tower is set by hand, so that an overlay shows
what the reduction does: even ground flows together, and what stands out from its crop is kept.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
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
    """Processor and model, the same on every machine."""
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
    set_tower(model)
    set_affinity_head(model)
    processor = GeoLlavaProcessor(
        GeoLlavaImageProcessor.from_config(config),
        tokenizer,
        num_keep=config.num_keep,
        tokens_per_frame=config.tokens_per_frame,
    )
    return processor, model.eval()


@torch.no_grad()
def set_tower(model: GeoLlavaForConditionalGeneration) -> None:
    """Patches become their cosine coefficients, the class token the mean patch.

    Uniform attention (keys are zero) averages; the anchor's query is the negative of its key, so
    that clusters score by how little they resemble the mean of their crop.
    """
    encoder = model.model.vision_tower.encoder
    width, patch = encoder.config.hidden_size, encoder.config.patch_size
    encoder.embeddings.patch_embedding.weight.copy_(cosine_filters(width, patch))
    encoder.embeddings.class_embedding.zero_()
    encoder.embeddings.position_embedding.weight.zero_()
    for layer in encoder.encoder.layers:
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        for linear in (attention.v_proj, attention.out_proj):
            linear.weight.copy_(torch.eye(width))
            linear.bias.zero_()
    model.model.vision_tower.anchor.q_proj.weight.copy_(-torch.eye(width))


def cosine_filters(count: int, patch: int) -> Tensor:
    """[count, 3, patch, patch]: two-dimensional cosines of rising frequency in three color axes."""
    phase = (torch.arange(patch) + 0.5) * math.pi / patch
    waves = torch.stack([torch.cos(frequency * phase) for frequency in range(patch)])
    frequencies = sorted(
        ((v, u) for v in range(patch) for u in range(patch)), key=lambda pair: (sum(pair), pair)
    )
    axes = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]])  # light, red-blue, green-magenta
    axes /= axes.norm(dim=1, keepdim=True)
    filters = []
    for v, u in frequencies[: -(-count // 3)]:
        wave = torch.outer(waves[v], waves[u])
        filters += [axis[:, None, None] * wave / wave.norm() / patch for axis in axes]
    return torch.stack(filters[:count])


@torch.no_grad()
def set_affinity_head(model: GeoLlavaForConditionalGeneration) -> None:
    """Tokens flow along differences of texture, and up and left where there are none.

    Each outer neighbor reads a few channels of its own, as neighbor minus center. Signs alternate,
    so that even ground and the zero padding beyond the border weigh nothing.
    """
    head = model.reghead
    bias = torch.zeros(9)
    bias[0] = 1.0
    head.load_state_dict(
        {
            "dw.weight": torch.zeros_like(head.dw.weight),
            "pw.weight": torch.zeros_like(head.pw.weight),
            "pw.bias": bias,
        }
    )
    outer = [tap for tap in range(9) if tap != 4]
    textured = range(3, 3 + 6 * len(outer))  # beyond the three channels of the mean color
    for position, channel in enumerate(textured):
        tap = outer[position // 2 % len(outer)]
        head.dw.weight[channel, 0].view(9)[tap] = 1
        head.dw.weight[channel, 0, 1, 1] = -1
        head.pw.weight[tap, channel] = 1 if position % 2 else -1


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
