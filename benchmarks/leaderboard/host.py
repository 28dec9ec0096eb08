"""The host of the board of answers: a small LLaVA behind the pretrained tower.

The tower is frozen and the same for every seed, so that a picture goes through it once: a replayed
tower gives its recorded output, and `recorded` what methods read of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.leaderboard.composite import WORDS, vocabulary
from benchmarks.leaderboard.tower import tower_config

PAD, EOS, IMAGE, FIRST_WORD = 0, 1, 2, 3
LAYERS, HIDDEN, HEADS = 4, 160, 4
NUMBERS = {word: FIRST_WORD + place for place, word in enumerate(vocabulary())}
WORD_OF = {number: word for word, number in NUMBERS.items()}


def ids_of(text: str) -> list[int]:
    """Token ids of a question, one a word.

    Raises:
        ValueError: a question of another length, or a word that is not in the vocabulary.
    """
    words = text.split()
    if len(words) != WORDS or not NUMBERS.keys() >= set(words):
        raise ValueError(f"a question must have {WORDS} words of the vocabulary, got {text!r}")
    return [NUMBERS[word] for word in words]


class ReplayedTower(nn.Module):
    """Stands in a host for its vision tower; pictures come as their numbers, see `numbered`.

    Attributes:
        shown: [B] int64, the numbers of the last batch.
    """

    def __init__(self, states: Tensor) -> None:
        """
        Args:
            states: [pictures, 1 + N, D], the class token's row first, of the layer that the host
                takes.
        """
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1), requires_grad=False)  # it has one
        self.layers = nn.ModuleList([nn.Identity()])  # of which nothing can be read
        self.register_buffer("states", states, persistent=False)
        self.shown = torch.zeros(0, dtype=torch.int64)

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        self.shown = pixel_values[:, 0, 0, 0].round().long()
        states = self.states[self.shown]  # type: ignore[index]
        return SimpleNamespace(hidden_states=(states, states), last_hidden_state=states)


def numbered(numbers: Sequence[int]) -> Tensor:
    """[B, 3, 1, 1], what a replayed tower takes for pixels."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 1, 1)


def build_host(
    side: int, seed: int, *, hidden: int = HIDDEN, layers: int = LAYERS
) -> LlavaForConditionalGeneration:
    """A host of `side` x `side` tokens whose language model is random, by `seed`; without a tower.

    It is whole once `model.model.vision_tower` is set.
    """
    vision = tower_config(side)
    vision.num_hidden_layers = 1  # built and thrown away
    text = LlamaConfig(
        vocab_size=FIRST_WORD + len(NUMBERS),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        initializer_range=hidden**-0.5,  # the default is made for wider models
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=side * side,
        vision_feature_layer=-2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        host = LlavaForConditionalGeneration(config)
    host.model.vision_tower = nn.Identity()
    host.generation_config.pad_token_id = PAD
    host.generation_config.eos_token_id = EOS
    return host.eval()


def prompts(questions: Sequence[str], numbers: Sequence[int], num_tokens: int) -> dict[str, Tensor]:
    """Inputs of a batch: question b about picture `numbers[b]`."""
    rows = [[IMAGE] * num_tokens + ids_of(question) for question in questions]
    input_ids = torch.tensor(rows)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": numbered(numbers),
    }
