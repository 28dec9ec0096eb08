"""verify(model, inputs): the masked-equivalence proof, on the user's own model and inputs.

What is proved: with its dropped tokens taken out, a model says what the whole model says with the
same tokens hidden. The whole model runs as it is, on the same inputs, without a reduction and
without a cache; two things alone are changed on the way into its language model. The columns of
dropped tokens are closed in the attention masks (for methods between the layers from the layer on
before which they left), and the placeholders of tokens that a method made anew carry what it made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.budget import Budget
from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.apply import open_host
from tokenprune.hosts.hooks import is_applied
from tokenprune.hosts.layer_checks import check_layers
from tokenprune.hosts.verifying.compare import restored
from tokenprune.hosts.verifying.proof import Proof
from tokenprune.hosts.verifying.report import VerifyReport
from tokenprune.hosts.verifying.runs import Runs
from tokenprune.method import Method, get_method
from tokenprune.ops.common.checks import check_int


def verify(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    method: str | Method = "divprune",
    keep_ratio: float = 0.5,
    new_tokens: int = 4,
) -> VerifyReport:
    """Shows on a model of your own that a reduction changes nothing but what it says it changes.

    Example::

        report = tokenprune.verify(model, inputs, method="divprune", keep_ratio=0.25)
        assert report.ok, report

    Six checks:

    - *features*: the language model gets image features in the order in which
      `get_image_features` gives them, as methods that look at grids or attention rely on.
    - *keep all*: with `keep_ratio=1` no bit of the logits changes, in the prompt and in generation.
    - *prompt*: the logits of every column that remains are those of the whole model in which the
      dropped tokens are hidden and the kept ones carry the reduced features.
    - *generation*: the same for `new_tokens` generated one by one, against the whole model without
      a cache.
    - *positions*: were positions off by one, this input would show it.
    - *undo*: afterwards the model says what it said, to the bit, and its modules' attributes, hooks
      and configuration are what they were.

    The tolerance of *prompt* and *generation* is measured: eight times the largest change of the
    logits when the language model's input embeddings are moved by one rounding of its dtype
    (2^-23 of their value in float32, 2^-10 in float16, 2^-7 in bfloat16). A check that could not
    have seen a fault beyond its tolerance is "not checked": coarse dtypes hardly show positions,
    float32 does.

    It takes about twelve prefills of the whole model, and two more for each of `new_tokens`. The
    proof is for `positions="original"` and for these inputs.

    Args:
        model: a host that `apply` knows, in eval mode, without a reduction applied.
        inputs: what the model's processor gave, with `input_ids` and images.
        method: a name of `list_methods()`, or a `Method`.
        keep_ratio: share of the tokens to keep, in (0, 1].
        new_tokens: how many to generate, at least 1.

    Raises:
        NotImplementedError: a model that no adapter knows.
        ValueError, TypeError: arguments; a model in training mode or with a reduction applied.
    """
    name = method if isinstance(method, str) else type(method).__name__
    if isinstance(method, str):
        method = get_method(method)
    elif not isinstance(method, Method):
        raise TypeError(f"method must be a name or a Method, got {name}")
    method = method.without_budget()
    Budget(None, keep_ratio)
    check_int("new_tokens", new_tokens, low=1)
    host, adapter, given = open_whole(model, inputs)
    if method.in_layers:
        check_layers(adapter, method)
        if method.merges:
            raise NotImplementedError(
                f"{name} makes rows of several tokens in the language model's layers, which the "
                "whole model with masked tokens does not"
            )
    if method.renumbers:
        raise NotImplementedError(
            f"{name} numbers positions anew, which the whole model with masked tokens does not"
        )
    with torch.no_grad(), restored(adapter.model, adapter.conversation_state):
        runs = Runs(host, adapter, given, method, new_tokens)
        return Proof(runs, name, keep_ratio).report()


def open_whole(
    model: nn.Module, inputs: Mapping[str, Any]
) -> tuple[nn.Module, Adapter, dict[str, Any]]:
    """(the transformers model, its adapter, the inputs), to be run as they are.

    Raises:
        NotImplementedError: a model that no adapter knows.
        ValueError, TypeError: a model in training mode or with a reduction applied; no inputs.
    """
    host, adapter = open_host(model)
    if any(module.training for module in host.modules()):
        raise ValueError("the model must be in eval mode, got one in training; call model.eval()")
    if is_applied(adapter.model):
        raise ValueError("the model must be whole, got one with a reduction applied; remove it")
    return host, adapter, check_inputs(inputs, adapter)


def check_inputs(inputs: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be the processor's, a mapping, got {type(inputs).__name__}")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise ValueError("inputs must have input_ids [B, L]")
    if not bool(adapter.placeholders(ids).any()):
        raise ValueError(
            f"inputs must hold an image, got no placeholder (id {adapter.image_token_id})"
        )
    return dict(inputs)
