"""Forms that work in the layers of the language model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tokenprune import LayerMethod
from tokenprune.hosts.attention import attention_of
from tokenprune.layer_tokens import LayerTokens
from tokenprune.methods.fastv import FastV
from tokenprune.methods.pact import PACT, importance
from tokenprune.methods.pyramiddrop import PyramidDrop

from .. import Compared, Form, Recorded


def heads_of(flat: Tensor, heads: int) -> Tensor:
    """[L, H * d] -> [1, H, L, d]."""
    return flat.unflatten(1, (heads, -1)).transpose(0, 1)[None]


def fastv(case: Recorded) -> Iterator[Compared]:
    attention, options = case.given("attention")[None, :, None], case.options
    start, number = options["fast_v_sys_length"], options["fast_v_image_token_length"]
    tokens = LayerTokens(
        attention.shape[3], start, number, attention=attention[..., start : start + number]
    )
    yield from kept_and_positions(
        FastV(), tokens, options["fast_v_attention_rank"], case, "kept_positions"
    )


def pyramiddrop(case: Recorded) -> Iterator[Compared]:
    """The recorded weights are put into a layer of transformers, which the host's reader reads."""
    hidden, options = case.given("hidden"), case.options
    ratios, stage = options["image_token_ratio_list"], options["stage"]
    start, number = options["image_index"], int(options["image_tokens"] * ratios[stage])
    received = last_row(case)[:, None, None, start : start + number]
    tokens = LayerTokens(len(hidden), start, number, attention=received)
    yield "score", received.flatten(), case.official("score")
    num_keep = int(options["image_tokens"] * ratios[stage + 1])
    method = PyramidDrop(official=True)
    yield from kept_and_positions(method, tokens, num_keep, case, "position_ids")


def last_row(case: Recorded) -> Tensor:
    """[1, L], what the last column attends to in a layer with the recorded weights."""
    hidden = case.given("hidden")
    config = LlamaConfig(
        hidden_size=hidden.shape[1],
        num_attention_heads=case.options["num_heads"],
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": case.options["rope_theta"]},
        attn_implementation="eager",
    )
    layer = LlamaDecoderLayer(config, 0)
    with torch.no_grad():
        layer.self_attn.q_proj.weight.copy_(case.given("wq"))
        layer.self_attn.k_proj.weight.copy_(case.given("wk"))
        layer.input_layernorm.weight.copy_(case.given("norm"))
        positions = torch.arange(len(hidden))[None]
        given = {
            "position_embeddings": LlamaRotaryEmbedding(config)(hidden, positions),
            "attention_mask": None,
        }
        return attention_of(layer, 0, hidden[None], torch.tensor([len(hidden) - 1]), given)


def kept_and_positions(
    method: LayerMethod, tokens: LayerTokens, num_keep: int, case: Recorded, positions: str
) -> Iterator[Compared]:
    kept = method.reduce_in_layer(tokens, num_keep).keep_indices
    yield "kept", kept[0], case.official("kept")
    yield positions, method.position_ids(tokens, kept)[0], case.official(positions)


def pact(case: Recorded) -> Iterator[Compared]:
    options = case.options
    hidden, heads = case.given("hidden"), options["heads"]
    tokens = LayerTokens(
        len(hidden),
        options["start"],
        options["N"],
        hidden_states=hidden[None],
        keys=heads_of(case.given("key_rope"), heads),
        plain_keys=heads_of(case.given("key"), heads),
        plain_queries=heads_of(case.given("query"), heads),
    )
    method = PACT(
        share=options["pruning_tokeep_percentage_value"],
        cutoff=options["cutoff"],
        reach=options["coef_pruned"],
    )
    yield "scores", importance(tokens)[0], case.official("scores")
    yield "unpruned", method.able(tokens)[0], case.official("unpruned")
    result = method.reduce_in_layer(tokens, options["N"])
    yield "kept", result.keep_indices[0], case.official("kept")
    yield "tokens", result.features[0], case.official("tokens")
    yield "weights", result.scores[0].exp(), case.official("weights")


FORMS: dict[str, Form] = {"fastv": fastv, "pyramiddrop": pyramiddrop, "pact": pact}
