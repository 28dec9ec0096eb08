"""What the small model is made of, and the words in which its tokens are to speak."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from geollava import (
    GeoLlavaConfig,
    GeoLlavaForConditionalGeneration,
    GeoLlavaImageProcessor,
    GeoLlavaProcessor,
)
from geollava.model.processing import IMAGE_TOKEN, VIDEO_TOKEN
from geollava.scenes import ask_in_words, facts_of, is_test, plan_varied
from geollava.scenes.questions import INSTRUCTION
from geollava.scenes.scene import COLOR_NAMES, DIRECTIONS, KINDS, LAND_USES, LANDMARKS

CROP, PATCH = 336, 14
GRID = CROP // PATCH  # patches along a crop's side
THINGS = (*KINDS, *LANDMARKS)
# What each patch is asked, and the words that answer. 0 is nothing, where there is nothing to say.
WORDS: dict[str, tuple[str, ...]] = {
    "thing": ("ground", *THINGS),
    "color": ("", *COLOR_NAMES),
    "moving": ("", "standing still", "moving"),
    "beside_fire": ("", "beside"),
    "from_helipad": ("", *DIRECTIONS),
    "land_use": ("", *LAND_USES),
}


def build() -> tuple[GeoLlavaProcessor, GeoLlavaForConditionalGeneration]:
    """Processor and model, not trained yet."""
    tokenizer = scene_tokenizer()
    config = GeoLlavaConfig(
        vision_config={
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": CROP,
            "patch_size": PATCH,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
        },
        tie_word_embeddings=True,
        vision_feature_layer=-1,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vision_tower_name="vision_tower",
        untrained=True,
    )
    model = GeoLlavaForConditionalGeneration(config)
    set_positions(model)
    set_language_model(model)
    processor = GeoLlavaProcessor(
        GeoLlavaImageProcessor.from_config(config),
        tokenizer,
        num_keep=config.num_keep,
        tokens_per_frame=config.tokens_per_frame,
    )
    return processor, model


@torch.no_grad()
def set_positions(model: GeoLlavaForConditionalGeneration) -> None:
    """Positions begin as waves along rows and columns: neighbors are alike from the start."""
    table = model.model.vision_tower.encoder.embeddings.position_embedding.weight
    waves = table.shape[1] // 4
    turns = torch.arange(GRID)[:, None] * 0.02 ** (torch.arange(waves) / waves)
    line = torch.cat([turns.sin(), turns.cos()], dim=1)  # [GRID, D / 2]
    rows, columns = line[:, None].expand(-1, GRID, -1), line[None].expand(GRID, -1, -1)
    table[1:] = 0.5 * torch.cat([rows, columns], dim=2).flatten(0, 1)


@torch.no_grad()
def set_language_model(model: GeoLlavaForConditionalGeneration) -> None:
    """Attention begins by looking for what is near or alike, and by copying what it finds.

    Queries and keys begin as the same projection, values and outputs as each other's transpose
    (mimetic initialization, arXiv 2305.09828). A small model that begins at random takes many more
    examples until it finds out that a word of the question stands for a token of the image.
    """
    width = model.config.text_config.hidden_size
    for name, parameter in model.model.named_parameters():
        if name.startswith(("layers", "embed_tokens")) and parameter.ndim == 2:
            nn.init.normal_(parameter, std=width**-0.5)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        size = attention.head_dim

        def projections(size: int = size) -> Tensor:
            return torch.cat(
                [torch.linalg.qr(torch.randn(width, size)).Q.T for _ in range(width // size)]
            )

        alike, copied = projections(), projections()
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(1.2 * alike + 0.02 * torch.randn_like(alike))
            projection.bias.zero_()
        attention.v_proj.weight.copy_(copied)
        attention.v_proj.bias.zero_()
        attention.o_proj.weight.copy_(0.5 * copied.T)
        # Some heads look at the last few words, or the last few dozens, whatever they are: a bias
        # that queries and keys share is turned apart by distance.
        for head, waves in enumerate(((2, 3, 4), (4, 5)) if index < 2 else ((2, 3, 4),)):
            own = slice(head * size, (head + 1) * size)
            bias = torch.zeros(size)
            bias[list(waves)] = (6 * size**0.5 / len(waves)) ** 0.5  # 6 nats for itself
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[own] = 0.05 * torch.randn(size, width)
                projection.bias[own] = bias
            attention.o_proj.weight[:, own] *= 6 if index < 2 else 2


def scene_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of the words that scenes are asked about in; spells all others."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=False),  # a count is one token
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(spoken(), trainer)
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, VIDEO_TOKEN]
    core.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    # What every question ends in is few tokens: the model reads it dozens of times for each scene.
    fixed = (INSTRUCTION, "system", "user", "assistant")
    core.add_tokens([AddedToken(words, normalized=False) for words in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def spoken() -> Iterator[str]:
    """Questions and answers in words for training, about scenes that are not for testing."""
    for seed in (seed for seed in range(750) if not is_test(seed)):
        facts = facts_of(plan_varied(seed, 672))
        for asked in ask_in_words(facts, np.random.default_rng([seed, 11]), "train", letters=0.1):
            yield asked.question
            yield asked.answer


class Wording:
    """What a patch shows, as the sum of the embeddings of the words for it.

    The embeddings are those of the beginning: later ones also say which word is likely to follow,
    and what is alike in that is no longer told apart.

    Attributes:
        tables: of each question, [answers, text width].
    """

    def __init__(self, tables: dict[str, Tensor]) -> None:
        self.tables = tables

    @classmethod
    def of(cls, embeddings: Tensor, tokenizer: PreTrainedTokenizerFast) -> Wording:
        def embed(word: str) -> Tensor:
            ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            return embeddings[ids].mean(0) if word else torch.zeros(embeddings.shape[1])

        return cls({name: torch.stack(list(map(embed, words))) for name, words in WORDS.items()})

    def __call__(self, labels: dict[str, Tensor]) -> Tensor:
        """int64 [...] of each question -> [..., text width]; negative labels say nothing."""
        said = [table[labels[name].clamp(min=0)] for name, table in self.tables.items()]
        return torch.stack(said).sum(0)


def split_crops(grid: Tensor) -> Tensor:
    """[patches, patches] of a square scene -> [crops, 576], as its crops are cut."""
    return (
        grid.unflatten(0, (-1, GRID))
        .unflatten(2, (-1, GRID))
        .transpose(1, 2)
        .flatten(2)
        .flatten(0, 1)
    )
