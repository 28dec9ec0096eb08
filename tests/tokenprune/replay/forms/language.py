"""Forms that work in the layers of the language model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from tokenprune import LayerMethod, LayerTokens
from tokenprune.hosts.attention import attention_of
from tokenprune.methods.dart import DART
from tokenprune.methods.fastv import FastV
from tokenprune.methods.pact import PACT, importance
from tokenprune.methods.pyramiddrop import PyramidDrop
from tokenprune.methods.sparsevlm import SparseVLM, raters

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
    received, queries, keys = rotated(case)
    received = received[..., start : start + number]
    tokens = LayerTokens(len(hidden), start, number, attention=received)
    yield "score", received.mean(1).flatten(), case.official("score")
    yield "keys", keys[0], case.official("keys")
    yield "query_last", queries[0, :, -1], case.official("query_last")
    num_keep = int(options["image_tokens"] * ratios[stage + 1])
    method = PyramidDrop(official=True)
    yield from kept_and_positions(method, tokens, num_keep, case, "position_ids")


def rotated(case: Recorded) -> tuple[Tensor, Tensor, Tensor]:
    """Of a layer with the recorded weights.

    Returns:
        [1, H, 1, L] what its last column attends to; [1, H, L, d] its queries, and its keys,
        rotated.
    """
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
        last = torch.tensor([[len(hidden) - 1]])
        received = attention_of(layer, 0, hidden[None], last, given)
        normed, heads = layer.input_layernorm(hidden), config.num_attention_heads
        flat = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
        queries, keys = apply_rotary_pos_emb(
            *(heads_of(one, heads) for one in flat), *given["position_embeddings"]
        )
        return received, queries, keys


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


def sparsevlm(case: Recorded) -> Iterator[Compared]:
    """Stage by stage, each on the recorded attention and states of its layer."""
    options = case.options
    version = 1 if case.method == "sparsevlm" else 2
    method = SparseVLM(version=version, num_heads=options.get("heads_used", 1))
    embeds = case.given("embeds")[None]
    start, number = options["prompt_before_image"], options["image_shape"]
    text = start + number
    chosen = raters(embeds[:, start:text], embeds[:, text : text + options["text_after_image"]])
    chosen = chosen[0].nonzero()[:, 0]
    yield "raters", chosen, case.official("raters")
    positions = torch.arange(embeds.shape[1])
    for stage in range(len(options["pruning_loc"])):
        rotary = None
        if method.version == 2:
            rotary = rotary_embedding(options["head_dim"], options["rope_theta"], positions)
        tokens = LayerTokens(
            len(positions),
            start,
            number,
            hidden_states=case.given(f"hidden{stage}")[None] if method.version == 1 else None,
            attention=case.given(f"attention{stage}")[None, :, chosen],
            raters=(start + number + chosen)[None],
            position_embeddings=rotary,
        )
        yield f"score{stage}", method.scores(tokens)[0], case.official(f"score{stage}")
        result = method.reduce_in_layer(tokens, min(options["kept_per_layer"][stage], number - 1))
        yield f"kept{stage}", result.keep_indices[0], case.official(f"kept{stage}")
        positions = positions[tokens.columns_after(result.keep_indices)[0]]
        number = result.rows.shape[1]
        if method.version == 1:
            yield f"visual{stage}", result.rows[0], case.official(f"visual{stage}")
            positions = torch.arange(start + number + options["text_after_image"])
    if method.version == 2:
        yield "position_ids", positions, case.official("position_ids")


def rotary_embedding(head_dim: int, theta: float, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, [1, L, head_dim] each."""
    config = LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    rotary: tuple[Tensor, Tensor] = LlamaRotaryEmbedding(config)(torch.ones(1), positions[None])
    return rotary


def dart(case: Recorded) -> Iterator[Compared]:
    """The authors' count follows from T, which their two files derive in two ways."""
    options, number = case.options, case.options["image_token_length"]
    image, text = options["pivot_image_token"], options["pivot_text_token"]
    budget = options.get("max_num_trunction") or number * (1 - options["reduction_ratio"])
    method = DART(image_pivots=image, text_pivots=text)
    tokens = layer_of(case, "last_layer_state")
    _, pivots = method.pivots(tokens)[0]
    yield "pivots", torch.tensor(pivots), case.official("pivots_in_order")
    num_keep = image + int(budget / (image + text)) * (image + text)
    yield "kept", method.reduce_in_layer(tokens, num_keep).keep_indices[0], case.official("kept")


def dartangelslim(case: Recorded) -> Iterator[Compared]:
    options, number = case.options, case.options["image_token_length"]
    image, text = options["pivot_image_token"], options["pivot_text_token"]
    method = DART(image_pivots=image, text_pivots=text, code="angelslim")
    num_keep = round(number * (1 - options["ratio"]))
    result = method.reduce_in_layer(layer_of(case, "feature_map"), num_keep)
    yield "kept", result.keep_indices[0], case.official("kept")


def layer_of(case: Recorded, states: str) -> LayerTokens:
    options, keys = case.options, case.given("key_states")[None]
    return LayerTokens(
        keys.shape[2],
        options["image_token_start_index"],
        options["image_token_length"],
        hidden_states=case.given(states)[None],
        keys=keys,
    )


FORMS: dict[str, Form] = {
    "fastv": fastv,
    "pyramiddrop": pyramiddrop,
    "pact": pact,
    "sparsevlm": sparsevlm,
    "sparsevlmplus": sparsevlm,
    "dart": dart,
    "dartangelslim": dartangelslim,
}
