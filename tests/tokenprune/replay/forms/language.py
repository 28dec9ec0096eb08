"""Forms that work in the layers of the language model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tokenprune.layer_tokens import LayerTokens
from tokenprune.methods.pact import PACT, importance

from .. import Compared, Form, Recorded


def heads_of(flat: Tensor, heads: int) -> Tensor:
    """[L, H * d] -> [1, H, L, d]."""
    return flat.unflatten(1, (heads, -1)).transpose(0, 1)[None]


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


FORMS: dict[str, Form] = {"pact": pact}
