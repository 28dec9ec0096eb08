"""Methods between the layers of the language model: exact against the whole model, and undone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import nn

import tokenprune
from tokenprune import get_method
from tokenprune.method import LayerMethod, Method
from tokenprune.testing import example_tokens

from . import hosts
from .hosts import CACHE, HOSTS, IMAGE, PAD, Host, cache_in
from .test_apply import (
    ONE,
    SIZES,
    THREE,
    generated,
    logits_of,
    rows_alone,
    skip_where_the_whole_model_needs_its_cache,
    traces,
)

METHODS = {
    "fastv": {},
    "pyramiddrop": {"layers": (1, 3), "ratio": 0.7},
}
_built: dict[str, Host] = {}


def deep(name: str, **options: Any) -> Host:
    """The host with four layers in its language model."""
    torch.manual_seed(0)
    with mock.patch.dict(hosts.TEXT, num_hidden_layers=4):
        return HOSTS[name](**options)


def build(name: str) -> Host:
    if name not in _built:
        _built[name] = deep(name)
    return _built[name]


@pytest.fixture(params=HOSTS)
def host(request) -> Host:
    return build(request.param)


@pytest.fixture
def llava() -> Host:
    return build("llava")


@pytest.fixture(params=METHODS)
def method(request) -> LayerMethod:
    return get_method(request.param, **METHODS[request.param])


def layers_of(host: Host) -> nn.ModuleList:
    base = host.model.base_model
    return (getattr(base, "language_model", None) or getattr(base, "text_model", base)).layers


@contextmanager
def eager(host: Host):
    implementation = host.model.config._attn_implementation
    host.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        host.model.set_attn_implementation(implementation)


def run_hidden(host: Host, inputs: Any, hidden: dict[int, torch.Tensor]) -> tuple[Any, list[Any]]:
    """The whole model, with columns masked away from some layers on.

    Args:
        hidden: layer -> [B, L] bool, what it and all after it do not see.

    Returns:
        Logits of all columns, and each layer's attention weights.
    """
    weights: list[Any] = []
    hooks = []

    def before(number: int) -> Any:
        def hide(module: Any, args: Any, kwargs: Any) -> Any:
            mask = kwargs["attention_mask"]
            for first, columns in hidden.items():
                if number >= first:
                    gone = columns[:, None, None, : mask.shape[3]]
                    mask = mask.masked_fill(gone, torch.finfo(mask.dtype).min)
            return args, kwargs | {"attention_mask": mask}

        return hide

    for number, layer in enumerate(layers_of(host)):
        hooks.append(layer.register_forward_pre_hook(before(number), with_kwargs=True))
        hooks.append(
            layer.self_attn.register_forward_hook(lambda module, args, out: weights.append(out[1]))
        )
    try:
        with eager(host):
            return logits_of(host, inputs), weights
    finally:
        for hook in hooks:
            hook.remove()


def truth(
    host: Host, inputs: Any, method: LayerMethod, num_keep: int, end: int = -1
) -> dict[int, torch.Tensor]:
    """What each cut removes, from the whole model's attention weights: for a batch of one."""
    ids = inputs["input_ids"]
    visual = (ids[0] == IMAGE).nonzero()[:, 0]
    # Images are told apart by their borders, or by the number of their tokens.
    alive = list(visual.split(host_lengths(host, inputs)))
    cuts = method.cuts(len(layers_of(host)))
    hidden: dict[int, torch.Tensor] = {}
    for turn, cut in enumerate(cuts):
        _, weights = run_hidden(host, inputs, hidden)
        received = weights[ranking_layer(host, inputs, cut.ranked_in, end)][0].mean(0)[end]
        gone = torch.zeros_like(ids, dtype=torch.bool)
        for i, image in enumerate(alive):
            total = len(host_positions(host, inputs)[i])
            count = method.counts(total, min(num_keep, total), len(cuts))[turn]
            # Ties go to the lowest: out of a window's sight all are zero.
            order = received[image].argsort(descending=True, stable=True)
            kept = image[order[:count].sort().values]
            gone[0, image] = True
            gone[0, kept] = False
            alive[i] = kept
        hidden[cut.before] = gone
    return hidden


def ranking_layer(host: Host, inputs: Any, number: int, end: int) -> int:
    """The last layer up to `number` whose window reaches the first visual token."""
    ids = inputs["input_ids"][0]
    distance = len(ids) + end - int((ids == IMAGE).nonzero()[0])
    config = layers_of(host)[0].self_attn.config
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * len(layers_of(host))
    window = getattr(config, "sliding_window", None)
    while types[number] == "sliding_attention" and window is not None and distance >= window:
        number -= 1
    assert number >= 0
    return number


def host_lengths(host: Host, inputs: Any) -> list[int]:
    sizes = {k: inputs[k] for k in ("pixel_values", *SIZES) if k in inputs}
    with torch.no_grad():
        return host.lengths(sizes)


def host_positions(host: Host, inputs: Any) -> list[torch.Tensor]:
    visual = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    return list(visual.split(host_lengths(host, inputs)))


def assert_exact(
    host: Host, method: Method, num_keep: int = 5, rows: Any = ONE, truth: Any = truth
) -> None:
    """Prompt and every generated token, against the whole model with columns masked away."""
    inputs = host.inputs(rows)
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    with tokenprune.apply(host.model, method, num_keep=num_keep) as handle:
        short = logits_of(host, inputs)
        (kept,) = handle.kept_positions
        run = generated(host, inputs)
        assert torch.equal(handle.kept_positions[0], kept)
    hidden = truth(host, inputs, method, num_keep)
    gone = torch.stack(list(hidden.values())).any(0)[0]
    assert kept.tolist() == (~gone).nonzero()[:, 0].tolist()
    assert len(kept) == length - sum(n - num_keep for n in host_lengths(host, inputs))
    whole, _ = run_hidden(host, inputs, hidden)
    torch.testing.assert_close(short[0], whole[0, kept], atol=1e-4, rtol=0)

    new = run.sequences.shape[1] - length
    longer = {**inputs, "input_ids": run.sequences, "attention_mask": torch.ones(1, length + new)}
    for kind in ("token_type_ids", "mm_token_type_ids"):
        if kind in inputs:
            rest = torch.full((1, new), int(host.model_type == "paligemma"))
            longer[kind] = torch.cat([inputs[kind], rest.to(inputs[kind])], 1)
    positions = host.positions(inputs)
    following = positions.max() + 1 + torch.arange(new)
    steps = torch.cat([positions, following.expand(*positions.shape[:-1], -1)], -1)
    hidden = {
        first: torch.cat([columns, torch.zeros(1, new, dtype=torch.bool)], 1)
        for first, columns in hidden.items()
    }
    whole, _ = run_hidden(host, {**longer, "position_ids": steps}, hidden)
    torch.testing.assert_close(
        torch.stack(run.logits, 1)[0], whole[0, length - 1 : -1], atol=1e-4, rtol=0
    )
    assert ids.shape[1] == length


def test_exactly_the_whole_model_with_columns_masked_away_from_a_layer_on(host, method):
    assert_exact(host, method)


def test_additive_masks_too(host, method):
    with eager(host):
        assert_exact(host, method)
        assert_rows(host, method)


@pytest.mark.parametrize("window", [10, 24, 40])
def test_a_sliding_window_ends_where_it_ended(window, method):
    host = deep("gemma3", sliding_window=window)
    assert_exact(host, method)
    assert_rows(host, method)
    assert_no_cache(host, method)


def mistral(window: int) -> Host:
    text = {**hosts.TEXT, "num_hidden_layers": 4, "sliding_window": window}
    torch.manual_seed(0)
    return HOSTS["llava"](text_config=transformers.MistralConfig(**text))


def test_a_sliding_window_in_all_layers(method):
    """It reaches the images from the prompt's end, but not from all that is said after it."""
    host = mistral(47)
    assert_exact(host, method)
    assert_rows(host, method)


def test_a_window_that_sees_no_image_cannot_rank(method):
    host = mistral(20)
    inputs = host.inputs(ONE)
    with tokenprune.apply(host.model, method, num_keep=5):
        with pytest.raises(
            NotImplementedError, match=r"window of 20 does not reach back .* 43 col"
        ):
            logits_of(host, inputs)
        logits_of(host, host.inputs([[3, 0, 1]]))


def assert_rows(host: Host, method: Method, rows: Any = THREE, **budget: Any) -> None:
    inputs = host.inputs(rows)
    with tokenprune.apply(host.model, method, **(budget or {"num_keep": 5})) as handle:
        batch = generated(host, inputs)
        kept = handle.kept_positions
        for row, alone in enumerate(rows_alone(host, inputs)):
            single = generated(host, alone)
            assert torch.equal(batch.sequences[row, -5:], single.sequences[0, -5:])
            logits = torch.stack([step[row] for step in batch.logits])
            expected = torch.stack([step[0] for step in single.logits])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
            padding = int((inputs["attention_mask"][row] == 0).sum())
            if "pixel_values" in alone:
                assert torch.equal(kept[row] - padding, handle.kept_positions[0])


def test_a_batch_is_its_rows(host, method):
    """Three prompts of unequal length, one of them without image, padded on the left."""
    assert_rows(host, method)


def assert_no_cache(host: Host, method: Method, **budget: Any) -> None:
    inputs = host.inputs([[3, 0, 4], [8, 0, 5]])
    skip_where_the_whole_model_needs_its_cache(host, inputs)
    with tokenprune.apply(host.model, method, **(budget or {"num_keep": 5})):
        cached = generated(host, inputs)
        without = generated(host, inputs, use_cache=False)
        again = generated(host, inputs)
    assert torch.equal(cached.sequences, without.sequences)
    for step, expected in zip(cached.logits, without.logits, strict=True):
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=0)
    assert torch.equal(torch.stack(again.logits), torch.stack(cached.logits))


def test_a_cache_changes_nothing(host, method):
    """Without a cache the whole sequence passes again: it is still ranked by the prompt's end."""
    assert_no_cache(host, method)


def test_keeping_all_changes_no_bit(host, method):
    inputs = host.inputs(ONE)
    plain, whole = logits_of(host, inputs), generated(host, inputs)
    with tokenprune.apply(host.model, method, keep_ratio=1.0) as handle:
        assert torch.equal(logits_of(host, inputs), plain)
        assert torch.equal(torch.stack(generated(host, inputs).logits), torch.stack(whole.logits))
        report = handle.report()
        assert len(handle.kept_positions[0]) == inputs["input_ids"].shape[1]
    assert report.tokens_before == report.tokens_after
    assert report.kv_cache_bytes_saved == 0


def test_undo_leaves_nothing_behind(host, method):
    inputs = host.inputs(ONE)
    plain = logits_of(host, inputs)
    before = traces(host.model)
    with tokenprune.apply(host.model, method, keep_ratio=0.5):
        generated(host, inputs)
    assert traces(host.model) == before
    assert torch.equal(logits_of(host, inputs), plain)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_undo_after_an_exception_in_a_layer(host, method, number):
    inputs = host.inputs(ONE)
    before = traces(host.model)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    # In the middle of the layer; number 1 is read ahead of its run by PyramidDrop.
    hook = layers_of(host)[number].self_attn.k_proj.register_forward_hook(stop)
    with (
        pytest.raises(KeyboardInterrupt),
        tokenprune.apply(host.model, method, keep_ratio=0.5),
    ):
        logits_of(host, inputs)
    hook.remove()
    assert traces(host.model) == before
    with tokenprune.apply(host.model, method, keep_ratio=0.5) as handle:
        logits_of(host, inputs)
        assert handle.report().tokens_after == handle.retained_count(host.sizes(inputs))


def test_the_cache_of_a_later_layer_holds_what_remains(llava):
    inputs = llava.inputs(ONE)
    method = get_method("pyramiddrop", layers=(1, 3), ratio=0.5)
    with tokenprune.apply(llava.model, method, num_keep=3) as handle:
        run = generated(llava, inputs)
        report, last = handle.report(), handle.last
        kept = handle.kept_positions[0]
    # 49 columns, 2 x 16 of them visual, and 4 more steps
    held = [layer.keys.shape[2] - 4 for layer in cache_in(run).layers]
    assert held == [49, 49 - 16, 49 - 16, 49 - 26]
    assert report.tokens_before == [16, 16]
    assert report.tokens_after == [3, 3]
    assert report.dropped == [13, 13]
    assert report.merged == [0, 0]
    assert report.seconds_reducing > 0
    # keys and values x 2 heads x 8 numbers x 4 bytes
    assert report.kv_cache_bytes_saved == (16 + 16 + 26) * 2 * 2 * 8 * 4
    visual = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].view(2, 16)
    assert last.grid_size == (4, 4)
    expected = visual.gather(1, last.keep_indices).flatten()
    assert torch.equal(kept[inputs["input_ids"][0, kept] == IMAGE], expected)
    assert (last.scores > 0).all()


def test_steps_by_hand(llava, method):
    """Several tokens at a time, with a mask of all columns or with none."""
    inputs = llava.inputs(ONE)
    tokens = torch.tensor([[7, 8, 9]])
    ones = torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long)
    hidden = truth(llava, inputs, method, 5)
    hidden = {
        first: torch.cat([columns, torch.zeros(1, 6, dtype=torch.bool)], 1)
        for first, columns in hidden.items()
    }
    longer = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], tokens, tokens], 1),
        "attention_mask": torch.cat([ones, ones[:, :3]], 1),
    }
    whole, _ = run_hidden(llava, longer, hidden)
    with tokenprune.apply(llava.model, method, num_keep=5), torch.no_grad():
        for mask in (ones, None):
            cache = cache_in(llava.model(**inputs, use_cache=True))
            first = llava.model(input_ids=tokens, **{CACHE: cache}, attention_mask=mask)
            second = llava.model(input_ids=tokens, **{CACHE: cache})
            result = torch.cat([first.logits, second.logits], 1)
            torch.testing.assert_close(result, whole[:, -6:], atol=1e-4, rtol=0)
        with pytest.raises(ValueError, match=r"attention_mask must have 58 columns"):
            llava.model(input_ids=tokens, **{CACHE: cache}, attention_mask=ones[:, :20])


def test_a_prompt_that_was_begun_without_images(llava, method):
    """A system prompt in the cache: what is cached already counts in the ranking's softmax."""
    inputs = llava.inputs([[6, 0, 4, 0, 5]])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with tokenprune.apply(llava.model, method, num_keep=5) as handle, torch.no_grad():
        whole = llava.model(**inputs).logits
        kept = handle.kept_positions[0]
        cache = cache_in(llava.model(input_ids=ids[:, :6], use_cache=True))
        rest = llava.model(input_ids=ids[:, 6:], pixel_values=pixels, **{CACHE: cache})
        assert handle.kept_positions[0].tolist() == [column for column in kept if column >= 6]
        torch.testing.assert_close(rest.logits, whole[:, 6:], atol=1e-4, rtol=0)
        token = torch.tensor([[7]])
        step = llava.model(input_ids=token, **{CACHE: cache}).logits
        cache = cache_in(llava.model(**inputs, use_cache=True))
        expected = llava.model(input_ids=token, **{CACHE: cache}).logits
    torch.testing.assert_close(step, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "idefics3", "gemma3"])
def test_beams_drafts_and_sampling(name, method):
    host = build(name)
    inputs = host.inputs(ONE)
    two = host.inputs([[3, 0, 4], [8, 0, 5]])
    with tokenprune.apply(host.model, method, num_keep=5):
        beams = generated(host, two, num_beams=3)
        no_cache = generated(host, two, num_beams=3, use_cache=False)
        assert torch.equal(beams.sequences, no_cache.sequences)
        greedy = generated(host, inputs, max_new_tokens=12)
        guessed = generated(host, inputs, max_new_tokens=12, prompt_lookup_num_tokens=3)
        assert torch.equal(greedy.sequences, guessed.sequences)
        options = {"do_sample": True, "temperature": 1.3, "top_k": 20}
        torch.manual_seed(3)
        sampled = generated(host, inputs, **options).sequences
        torch.manual_seed(3)
        again = generated(host, inputs, **options, use_cache=False).sequences
        assert torch.equal(sampled, again)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "idefics3"])
def test_a_draft_in_the_first_step(name, method):
    """The ranking is the prompt's, not the draft's; the cache is cropped into the prompt."""
    host = build(name)
    inputs = host.inputs([[30, 0, 4, 0, 30]])
    ids = inputs["input_ids"]
    ids[0, -20:-10] = ids[0, 1:11] = ids[0, -10:].clone()
    drafts = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1}
    with tokenprune.apply(host.model, method, num_keep=3):
        greedy = generated(host, inputs, max_new_tokens=15)
        guessed = generated(host, inputs, max_new_tokens=15, **drafts)
    assert torch.equal(greedy.sequences, guessed.sequences)


def test_another_prompt_one_token_longer_is_ranked_anew(llava, method):
    inputs = llava.inputs(ONE)
    ids = inputs["input_ids"]
    other = {**inputs, "input_ids": torch.cat([ids[:, :-1], torch.tensor([[50, 51]])], 1)}
    other["attention_mask"] = torch.ones_like(other["input_ids"])
    with tokenprune.apply(llava.model, method, num_keep=5) as handle:
        logits_of(llava, inputs)
        logits_of(llava, other)
        (kept,) = handle.kept_positions
    hidden = truth(llava, other, method, 5)
    gone = torch.stack(list(hidden.values())).any(0)[0]
    assert kept.tolist() == (~gone).nonzero()[:, 0].tolist()


def test_training(host, method):
    """Answers take no part in the ranking, and the loss is that of the columns that remain."""
    model = host.model
    inputs = host.inputs([[3, 0, 9], [8, 0, 5]], pad_left=False)
    ids = inputs["input_ids"]
    labels = ids.masked_fill((ids == IMAGE) | (ids == PAD), -100)
    labels[0, : (inputs["attention_mask"][0].sum() - 3)] = -100
    with tokenprune.apply(model, method, num_keep=5) as handle:
        output = model(**inputs, labels=labels)
        output.loss.backward()
        kept = handle.kept_positions
        changed = {**inputs, "input_ids": ids.clone()}
        row = int(inputs["attention_mask"][0].sum())
        changed["input_ids"][0, row - 3 : row] = 77
        model(**changed, labels=labels)
        assert torch.equal(handle.kept_positions[0], kept[0])
    try:
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        tower = handle._adapter.vision_tower
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
        total, count = 0.0, 0
        for row, columns in enumerate(kept):
            logits = output.logits[row, : len(columns) - 1].float()
            targets = labels[row, columns][1:]
            total += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += int((targets != -100).sum())
        assert output.loss.item() == pytest.approx(total / count, rel=1e-5)
    finally:
        model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(method, reentrant):
    host = deep("llava")
    inputs = host.inputs(ONE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    host.model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            options = {"use_reentrant": reentrant}
            host.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        with tokenprune.apply(host.model, method, num_keep=5):
            host.model(**inputs, labels=labels).loss.backward()
        gradients.append(layers_of(host)[3].mlp.up_proj.weight.grad.clone())
        host.model.zero_grad()
    torch.testing.assert_close(*gradients)


def test_what_cannot_be_is_refused(llava):
    for method, error, message in (
        (
            get_method("fastv", layer=4),
            ValueError,
            "layer must lie below the 4 layers",
        ),
        (
            get_method("pyramiddrop", layers=(1, 4)),
            ValueError,
            r"layers must lie below the 4 layers .* got \[1, 4\]",
        ),
    ):
        before = traces(llava.model)
        with pytest.raises(error, match=message):
            tokenprune.apply(llava.model, method, num_keep=3)
        assert traces(llava.model) == before
    with pytest.raises(NotImplementedError, match="FastV ranks tokens by what it reads in a lang"):
        get_method("fastv").reduce(example_tokens(), 3)
    inputs = llava.inputs(ONE)
    inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
    with (
        tokenprune.apply(llava.model, "fastv", num_keep=3),
        pytest.raises(ValueError, match="attention must be finite"),
    ):
        logits_of(llava, inputs)


def test_deepstack_after_the_last_layer_is_refused():
    torch.manual_seed(0)
    host = HOSTS["qwen3_vl"]()  # features are added after both of its layers
    with (
        tokenprune.apply(host.model, get_method("fastv", layer=1), num_keep=3),
        pytest.raises(NotImplementedError, match="image features that are added after the last"),
    ):
        logits_of(host, host.inputs(ONE))


def test_the_published_schedule():
    assert get_method("pyramiddrop").cuts(32) == [(8, 8), (16, 16), (24, 24)]
    assert get_method("pyramiddrop").counts(576, 72, 3) == [288, 144, 72]
    assert get_method("pyramiddrop", ratio=0.5).counts(576, 200, 3) == [288, 200, 200]
    assert get_method("fastv").cuts(32) == [(2, 1)]
    official = get_method("pyramiddrop", ratio=0.5, official=True)
    assert official.counts(101, 12, 3) == [50, 25, 12]
    assert get_method("pyramiddrop", ratio=0.5).counts(101, 12, 3) == [51, 25, 12]


def test_official_pyramiddrop_numbers_positions_anew(llava):
    """No count is rounded here: positions alone differ."""
    inputs, options = llava.inputs(ONE), {"layers": (1, 3), "ratio": 0.5}
    with tokenprune.apply(llava.model, get_method("pyramiddrop", **options), num_keep=4):
        original = logits_of(llava, inputs)
    given = {"num_keep": 4, "positions": "compact"}
    with tokenprune.apply(llava.model, get_method("pyramiddrop", **options), **given):
        compact = logits_of(llava, inputs)
    method = get_method("pyramiddrop", official=True, **options)
    with tokenprune.apply(llava.model, method, num_keep=4):
        assert torch.equal(logits_of(llava, inputs), compact)
    assert not torch.allclose(original, compact, atol=1e-5)
    with pytest.raises(NotImplementedError, match="numbers positions anew"):
        tokenprune.verify(llava.model, inputs, method=method)


def attend_like_flash(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """FlashAttention's conventions: causal from the last column back, a mask of padding alone."""
    held, length = key.shape[2], query.shape[2]
    seen = torch.ones(length, held, dtype=torch.bool).tril(held - length)[None, None]
    if mask is not None:
        assert mask.shape == (len(key), held)
        seen = seen & mask.bool()[:, None, None]
        seen = seen | torch.eye(held, dtype=torch.bool)[-length:]
    elif kwargs.get("position_ids") is not None and len(key) == 1:
        assert (kwargs["position_ids"].diff() == 1).all(), "taken for packed sequences"
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scaling)
    return out.transpose(1, 2), None


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_beside_flash_attention(name, method, monkeypatch):
    """Its kernels do not run here; what it is given does: no weights, masks of padding alone."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    host = deep(name)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_here", attend_like_flash)
    monkeypatch.setitem(
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_here", flash_attention_mask
    )
    inputs, batch = host.inputs(ONE), host.inputs(THREE)
    with tokenprune.apply(host.model, method, num_keep=5):
        expected = [generated(host, inputs), generated(host, batch)]
    host.model.set_attn_implementation({"text_config": "flash_here"})
    assert layers_of(host)[0].self_attn.config._attn_implementation == "flash_here"
    with tokenprune.apply(host.model, method, num_keep=5):
        actual = [generated(host, inputs), generated(host, batch)]
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.sequences, other.sequences)
        torch.testing.assert_close(
            torch.stack(one.logits), torch.stack(other.logits), atol=1e-4, rtol=0
        )


def test_a_cache_that_goes_on_under_another_handle(llava):
    inputs = llava.inputs(THREE)
    token = torch.tensor([[7], [8], [9]])
    results = []
    with torch.no_grad():
        for method in ("fastv", "random"):
            with tokenprune.apply(llava.model, "fastv", num_keep=3):
                cache = cache_in(llava.model(**inputs, use_cache=True))
            with tokenprune.apply(llava.model, method, num_keep=3):
                results.append(llava.model(input_ids=token, **{CACHE: cache}).logits)
    assert torch.equal(*results)


def test_beside_another_method(llava):
    inputs = llava.inputs(ONE)
    before = traces(llava.model)
    with tokenprune.apply(llava.model, "random", num_keep=8) as outer:
        first = logits_of(llava, inputs)
        with tokenprune.apply(llava.model, "fastv", num_keep=3) as inner:
            assert logits_of(llava, inputs).shape[1] == 49 - 26
            assert inner.report().tokens_after == [3, 3]
        assert torch.equal(logits_of(llava, inputs), first)
        assert outer.report().tokens_after == [8, 8]
    assert traces(llava.model) == before


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_compact_positions_close_gaps_from_each_cut_on(name, method):
    """The whole model, its layers from a cut on given the rotary embeddings of closed gaps."""
    host = build(name)
    inputs = host.inputs(ONE)
    length, new = inputs["input_ids"].shape[1], 4
    with tokenprune.apply(host.model, method, num_keep=5, positions="compact") as handle:
        short = logits_of(host, inputs)
        kept = handle.kept_positions[0]
        by_layer = handle.outcome().by_layer
        run = generated(host, inputs, max_new_tokens=new + 1)
    hidden = {
        number: nn.functional.pad(~keep, (0, new))
        for number, keep in enumerate(by_layer)
        if keep is not None
    }
    longer = {**inputs, "input_ids": run.sequences[:, :-1]}
    longer["attention_mask"] = torch.ones(1, length + new, dtype=torch.long)
    for kind in ("token_type_ids", "mm_token_type_ids"):
        if kind in inputs:
            longer[kind] = nn.functional.pad(inputs[kind], (0, new))
    positions = host.positions(inputs)
    following = positions.max() + 1 + torch.arange(new)
    longer["position_ids"] = torch.cat(
        [positions, following.expand(*positions.shape[:-1], -1)], dim=-1
    )
    model = host.model.model.language_model
    hooks = [
        layers_of(host)[number].register_forward_pre_hook(
            closed_gaps(model, number, ~columns[0], longer["position_ids"]), with_kwargs=True
        )
        for number, columns in hidden.items()
    ]
    try:
        whole, _ = run_hidden(host, longer, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(short[0], whole[0, kept], atol=1e-4, rtol=0)
    steps = torch.stack(run.logits, 1)[0]
    torch.testing.assert_close(steps, whole[0, length - 1 :], atol=1e-4, rtol=0)


def closed_gaps(model: Any, number: int, keep: torch.Tensor, positions: torch.Tensor) -> Any:
    """Positions that no kept token uses are taken out, on all axes together."""
    used = positions[..., 0, keep].unique()
    closed = torch.searchsorted(used, positions.contiguous()).clamp(max=len(used) - 1)
    types = getattr(model.config, "layer_types", None)
    kind = (types[number],) if "gemma3" in model.config.model_type else ()

    def before(module: Any, args: Any, kwargs: Any) -> Any:
        rotary = model.rotary_emb(args[0] if args else kwargs["hidden_states"], closed, *kind)
        return args, kwargs | {"position_embeddings": rotary}

    return before
