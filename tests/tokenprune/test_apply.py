"""apply(): exact, in step, and undone."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

import tokenprune
from tokenprune import VisionTokens, get_method
from tokenprune.hosts.registry import find_adapter

from .hosts import CACHE, HOSTS, IMAGE, NEEDS_CACHE, PAD, TEXT, Host, cache_in

# From 5.18 on images are encoded before the prompt is taken to pieces.
CHUNKS_ENCODED_IMAGES = Version(transformers.__version__) >= Version("5.18")
GREEDY: dict[str, Any] = {
    "max_new_tokens": 5,
    "do_sample": False,
    "eos_token_id": None,
    "suppress_tokens": [100, 101],
    "return_dict_in_generate": True,
    "output_logits": True,
}
ONE = [[3, 0, 4, 0, 5]]
THREE = [[3, 0, 4, 0, 5], [6], [2, 0, 9]]
_built: dict[str, Host] = {}


def build(name: str) -> Host:
    if name not in _built:
        torch.manual_seed(0)
        _built[name] = HOSTS[name]()
    return _built[name]


@pytest.fixture(params=HOSTS)
def host(request) -> Host:
    return build(request.param)


@pytest.fixture
def llava() -> Host:
    return build("llava")


def logits_of(host: Host, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return host.model(**inputs).logits


def generated(host: Host, inputs: dict[str, Any], **options: Any) -> Any:
    return host.model.generate(**inputs, **{**GREEDY, **options})


def traces(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module: nothing may stay behind."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            # What Qwen-VL keeps there from turn to turn is its own, with or without us.
            if key in ("_parameters", "_buffers", "_modules", "rope_deltas"):
                continue
            found[f"{name}.{key}"] = (
                value.tolist()
                if isinstance(value, torch.Tensor)
                else (len(value) if key.endswith("hooks") else repr(value)[:200])
            )
    return found


# -- exact ------------------------------------------------------------------------------------


def test_keeping_all_changes_no_bit(host):
    inputs = host.inputs(ONE)
    plain, whole = logits_of(host, inputs), generated(host, inputs)
    for method in ("random", "spatial_pool"):
        with tokenprune.apply(host.model, method, keep_ratio=1.0) as handle:
            assert torch.equal(logits_of(host, inputs), plain)
            assert torch.equal(generated(host, inputs).sequences, whole.sequences)
            report = handle.report()
        assert report.tokens_before == report.tokens_after
        assert report.kv_cache_bytes_saved == 0


@pytest.mark.parametrize("method", ["random", "divprune", "fastervlm", "sparsevlm"])
def test_original_positions_are_the_whole_model_with_tokens_hidden(host, method):
    """The pruned tokens masked out of the unpruned model: in the prompt, and ever after."""
    inputs = host.inputs(ONE)
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    with tokenprune.apply(host.model, method, keep_ratio=0.4) as handle:
        short = logits_of(host, inputs)
        (kept,) = handle.kept_positions
        run = generated(host, inputs)
        assert torch.equal(handle.kept_positions[0], kept)
    assert len(kept) < length

    hidden = torch.zeros_like(ids)
    hidden[:, kept] = 1
    positions = host.positions(inputs) + (host.model_type == "paligemma")
    whole = logits_of(host, {**inputs, "attention_mask": hidden, "position_ids": positions})
    text = ids[0, kept] != IMAGE
    torch.testing.assert_close(short[0][text], whole[0, kept][text], atol=1e-4, rtol=0)

    # All generated tokens at once, through the whole model.
    new = run.sequences.shape[1] - length
    following = positions.max() + 1 + torch.arange(new)
    longer = {
        **inputs,
        "input_ids": run.sequences,
        "attention_mask": torch.cat([hidden, torch.ones(1, new, dtype=torch.long)], 1),
    }
    for kind in ("token_type_ids", "mm_token_type_ids"):
        if kind in inputs:
            rest = torch.full((1, new), int(host.model_type == "paligemma"))
            longer[kind] = torch.cat([inputs[kind], rest.to(inputs[kind])], 1)
    positions = positions if host.model_type != "paligemma" else host.positions(inputs)
    if host.model_type == "paligemma":
        # generate() numbers its positions from 0, forward from 1.
        following = following - 1
    steps = torch.cat([positions, following.expand(*positions.shape[:-1], -1)], -1)
    whole = logits_of(host, {**longer, "position_ids": steps})[0, length - 1 : -1]
    torch.testing.assert_close(torch.stack(run.logits, 1)[0], whole, atol=1e-4, rtol=0)


def test_additive_masks_are_shortened_too(host):
    """Eager attention adds its masks, SDPA takes booleans."""
    implementation = host.model.config._attn_implementation
    host.model.set_attn_implementation("eager")
    try:
        test_original_positions_are_the_whole_model_with_tokens_hidden(host, "random")
        test_a_batch_is_its_rows(host, "original")
    finally:
        host.model.set_attn_implementation(implementation)


@pytest.mark.parametrize("window", [10, 24])
def test_a_sliding_window_ends_where_it_ended(window):
    torch.manual_seed(0)
    host = HOSTS["gemma3"](sliding_window=window)
    test_original_positions_are_the_whole_model_with_tokens_hidden(host, "random")
    test_a_batch_is_its_rows(host, "original")
    test_a_cache_changes_nothing(host, "original")


@pytest.mark.parametrize("window", [10, 40])
def test_a_sliding_window_in_all_layers(window):
    torch.manual_seed(0)
    text = transformers.MistralConfig(**TEXT, sliding_window=window)
    host = HOSTS["llava"](text_config=text)
    test_original_positions_are_the_whole_model_with_tokens_hidden(host, "random")
    test_a_batch_is_its_rows(host, "original")
    test_a_cache_changes_nothing(host, "original")


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_batch_is_its_rows(host, positions):
    """Three prompts of unequal length, one of them without image, padded on the left."""
    inputs = host.inputs(THREE)
    with tokenprune.apply(host.model, "divprune", keep_ratio=0.4, positions=positions) as handle:
        batch = generated(host, inputs)
        kept = handle.kept_positions
        for row, alone in enumerate(rows_alone(host, inputs)):
            single = generated(host, alone)
            assert torch.equal(batch.sequences[row, -5:], single.sequences[0, -5:])
            logits = torch.stack([step[row] for step in batch.logits])
            expected = torch.stack([step[0] for step in single.logits])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
            if "pixel_values" in alone:
                padding = int((inputs["attention_mask"][row] == 0).sum())
                assert torch.equal(kept[row] - padding, handle.kept_positions[0])


def rows_alone(host: Host, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Each row of a batch without its padding, with its images and no others."""
    ids = inputs["input_ids"]
    lengths = host.lengths({k: v for k, v in inputs.items() if k in ("pixel_values", *SIZES)})
    rows, first = [], 0
    for row in range(len(ids)):
        real = inputs["attention_mask"][row].bool()
        alone = {
            key: inputs[key][row : row + 1, real]
            for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
            if key in inputs
        }
        missing, last = int((ids[row] == IMAGE).sum()), first
        while missing:
            missing -= lengths[last]
            last += 1
        if last > first:
            alone |= images_between(host, inputs, first, last, row)
        elif host.model_type == "paligemma" or "mm_token_type_ids" in alone:
            alone.pop("mm_token_type_ids", None)
        rows.append(alone)
        first = last
    return rows


SIZES = ("image_sizes", "image_grid_thw", "num_crops")


def images_between(host: Host, inputs: Any, first: int, last: int, row: int) -> dict[str, Any]:
    pixels = inputs["pixel_values"]
    chosen = {name: inputs[name][first:last] for name in SIZES if name in inputs}
    if "image_grid_thw" in inputs:
        patches = inputs["image_grid_thw"].prod(1).tolist()
        start = sum(patches[:first])
        chosen["pixel_values"] = pixels[start : start + sum(patches[first:last])]
    elif "num_crops" in inputs:
        start, end = (int(inputs["num_crops"][:image].sum()) for image in (first, last))
        chosen["pixel_values"] = pixels[start:end]
    elif host.crop_tokens:
        chosen["pixel_values"] = pixels[row : row + 1, : last - first]
    else:
        chosen["pixel_values"] = pixels[first:last]
    return chosen


def skip_where_the_whole_model_needs_its_cache(host: Host, inputs: dict[str, Any]) -> None:
    if host.model_type not in NEEDS_CACHE:
        return
    cached, without = (generated(host, inputs, use_cache=use) for use in (True, False))
    assert not torch.allclose(torch.stack(cached.logits), torch.stack(without.logits), atol=1e-4)
    pytest.skip("in this release the whole model says something else without a cache")


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_cache_changes_nothing(host, positions):
    inputs = host.inputs([[3, 0, 4], [8, 0, 5]])
    skip_where_the_whole_model_needs_its_cache(host, inputs)
    with tokenprune.apply(host.model, "divprune", keep_ratio=0.4, positions=positions):
        cached = generated(host, inputs)
        without = generated(host, inputs, use_cache=False)
    assert torch.equal(cached.sequences, without.sequences)
    for step, expected in zip(cached.logits, without.logits, strict=True):
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "idefics3", "gemma3"])
def test_beams_assistants_and_sampling(name):
    host = build(name)
    inputs = host.inputs(ONE)
    with tokenprune.apply(host.model, "divprune", keep_ratio=0.4):
        greedy = generated(host, inputs)
        beams = generated(host, host.inputs([[3, 0, 4], [8, 0, 5]]), num_beams=3)
        no_cache = generated(
            host, host.inputs([[3, 0, 4], [8, 0, 5]]), num_beams=3, use_cache=False
        )
        assert torch.equal(beams.sequences, no_cache.sequences)
        guessed = generated(host, inputs, prompt_lookup_num_tokens=3)
        assert torch.equal(greedy.sequences, guessed.sequences)
        options = {"do_sample": True, "temperature": 1.3, "top_k": 20}
        torch.manual_seed(3)
        sampled = generated(host, inputs, **options).sequences
        torch.manual_seed(3)
        again = generated(host, inputs, **options, use_cache=False).sequences
        assert torch.equal(sampled, again)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "idefics3"])
def test_a_draft_that_is_rejected_in_the_first_step(name):
    """The cache is cropped into the prompt then, and so is what it remembers."""
    host = build(name)
    inputs = host.inputs([[30, 0, 4, 0, 30]])
    ids = inputs["input_ids"]
    again = ids[0, -10:].clone()
    ids[0, -20:-10] = again
    ids[0, 1:11] = again
    drafts = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1, "max_new_tokens": 15}
    with tokenprune.apply(host.model, "divprune", keep_ratio=0.4):
        greedy = generated(host, inputs, max_new_tokens=15)
        guessed = generated(host, inputs, **drafts)
    assert torch.equal(greedy.sequences, guessed.sequences)


def test_compact_is_the_shorter_prompt(llava):
    """Closing the gaps is what the language model would make of the kept tokens alone."""
    inputs = llava.inputs(ONE)
    base = llava.model.model
    with tokenprune.apply(llava.model, "random", num_keep=5, positions="compact") as handle:
        short = logits_of(llava, inputs)
        (kept,) = handle.kept_positions
    with torch.no_grad():
        features = torch.cat(base.get_image_features(inputs["pixel_values"]).pooler_output)
        ids = inputs["input_ids"]
        embeddings = base.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter((ids == IMAGE)[..., None], features)
        expected = llava.model(inputs_embeds=embeddings[:, kept]).logits
    torch.testing.assert_close(short, expected, atol=1e-5, rtol=0)


def test_compact_mrope_closes_gaps_on_all_axes_together():
    host = build("qwen2_5_vl")
    inputs = host.inputs(ONE)
    with tokenprune.apply(host.model, "random", keep_ratio=0.3, positions="compact"):
        compact, *later = [call["position_ids"] for call in language_model_calls(host, inputs)]
    with tokenprune.apply(host.model, "random", keep_ratio=0.3) as handle:
        original, *_ = [call["position_ids"] for call in language_model_calls(host, inputs)]
    used = original[-3:, 0].unique()
    assert torch.equal(compact[-3:, 0], torch.searchsorted(used, original[-3:, 0].contiguous()))
    assert compact[-3:].unique().tolist() == list(range(len(used)))
    assert [int(step[-1, 0, 0]) for step in later] == [len(used) + i for i in range(4)]
    assert len(handle.kept_positions[0]) == original.shape[-1]


# -- in step ----------------------------------------------------------------------------------


def language_model_calls(host: Host, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """What the language model is called with while generating; inside of `apply`, so after it."""
    calls: list[dict[str, Any]] = []
    base = host.model.base_model
    module = getattr(base, "language_model", None) or base.text_model
    hook = module.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
    )
    generated(host, inputs)
    hook.remove()
    return calls


def test_merged_features_and_deepstack_go_in_step():
    host = build("qwen3_vl")
    inputs = host.inputs([[3, 0, 4]])
    plain = Deepstack(host)
    logits_of(host, inputs)
    whole = plain.stop()
    with tokenprune.apply(host.model, "spatial_pool", num_keep=4) as handle:
        reduced = Deepstack(host)
        logits_of(host, inputs)
        short = reduced.stop()
        tokens = handle.last
    for before, after in zip(whole, short, strict=True):
        windows = tokens.assignment[0]
        expected = torch.stack([before[windows == root].mean(0) for root in tokens.keep_indices[0]])
        torch.testing.assert_close(after, expected)


class Deepstack:
    """The deepstack features that reach the language model's layers."""

    def __init__(self, host: Host) -> None:
        self.model = host.model.model.language_model
        self.seen: list[torch.Tensor] = []
        plain = self.model._deepstack_process

        def watched(hidden: Any, mask: Any, embeds: torch.Tensor) -> Any:
            self.seen.append(embeds)
            return plain(hidden, mask, embeds)

        self.model._deepstack_process = watched

    def stop(self) -> list[torch.Tensor]:
        del self.model._deepstack_process
        assert self.seen
        return self.seen


def test_a_merging_method_replaces_features(llava):
    inputs = llava.inputs([[3, 0, 4]])
    with torch.no_grad():
        (features,) = llava.model.model.get_image_features(inputs["pixel_values"]).pooler_output
    with tokenprune.apply(llava.model, "spatial_pool", num_keep=4) as handle:
        first, *_ = language_model_calls(llava, inputs)
        tokens, kept = handle.last, handle.kept_positions[0]
    expected = get_method("spatial_pool").reduce(VisionTokens(features[None], (4, 4)), 4)
    assert torch.equal(tokens.features, expected.features)
    visual = inputs["input_ids"][0, kept] == IMAGE
    assert torch.equal(first["inputs_embeds"][0][visual], expected.features[0])
    report = handle.report()
    assert report.tokens_before == [16]
    assert report.tokens_after == [4]
    assert report.merged == [12]
    assert report.dropped == [0]


@pytest.mark.parametrize("name", HOSTS)
def test_attention_is_the_towers_own(name):
    """What FasterVLM ranks by equals the softmax written out in the tower's eager attention."""
    host = build(name)
    inputs = host.inputs([[3, 0, 0, 4]])
    seen: list[torch.Tensor] = []

    class Spy(type(get_method("fastervlm"))):  # type: ignore[misc]
        def _reduce(self, tokens: VisionTokens, num_keep: int) -> Any:
            seen.append(tokens.attention)
            return super()._reduce(tokens, num_keep)

    with tokenprune.apply(host.model, Spy(), keep_ratio=0.5) as handle:
        adapter = handle._adapter
        logits_of(host, inputs)
    layer = adapter.attention_layer
    weights: list[torch.Tensor] = []
    interface = layer.config
    eager = copy.copy(interface)
    eager._attn_implementation_internal = "eager"
    layer.config = eager
    module = __import__(type(layer).__module__, fromlist=["eager_attention_forward"])
    plain = module.eager_attention_forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        weights.append(output[1])
        return output

    module.eager_attention_forward = noting
    try:
        logits_of(host, inputs)
    finally:
        module.eager_attention_forward = plain
        layer.config = interface
    prefix = adapter.num_prefix_tokens
    received = [
        (one[:, :, 0] if prefix else one.mean(2)).mean(1)[:, prefix:] for one in weights if one.ndim
    ]
    joined = received[0] if len(received) == 1 else torch.cat(received, 1)
    images = {k: inputs[k] for k in SIZES if k in inputs}
    with torch.no_grad():
        features = host.model.base_model.get_image_features(
            **images, pixel_values=inputs["pixel_values"], return_dict=True
        ).pooler_output
    sizes = adapter.sizes(images, features, inputs["input_ids"])
    expected = torch.cat(adapter.token_attention(joined, sizes))
    actual = torch.cat([part.flatten() for part in seen])
    torch.testing.assert_close(actual.sort().values, expected.sort().values, atol=1e-6, rtol=1e-4)
    assert actual.std() > 0


def test_window_order_of_qwen2_5_is_undone():
    """The tower sorts tokens by window; attention must come back in raster order."""
    host = build("qwen2_5_vl")
    adapter = tokenprune.apply(host.model, "random", num_keep=1)
    adapter.remove()
    adapter = adapter._adapter
    sizes = [(1, 8, 6), (1, 10, 6)]
    order = adapter.window_order(sizes, torch.device("cpu"))
    patches = torch.arange(12 + 15)[order].repeat_interleave(4)[None].float()
    first, second = adapter.token_attention(patches, sizes)
    assert torch.cat([first, second]).tolist() == list(range(27))
    assert order.tolist() != list(range(27))


@pytest.mark.skipif(not CHUNKS_ENCODED_IMAGES, reason="images are encoded in the forward alone")
def test_images_encoded_before_are_known_by_all_of_them():
    """Attention that was read for another image must not stand for one that looks like it."""
    host = build("qwen3_vl")
    inputs = host.inputs(ONE)
    pixels, grid = inputs.pop("pixel_values"), inputs["image_grid_thw"]
    with tokenprune.apply(host.model, "fastervlm", keep_ratio=0.4), torch.no_grad():
        encoded = host.model.base_model.get_image_features(pixels, grid, return_dict=True)
        other = copy.deepcopy(encoded)
        host.model(**inputs, mm_encoder_outputs={"image": other})
        first, last = other.pooler_output
        other.pooler_output = (first, last + 1)
        with pytest.raises(ValueError, match="images that were encoded before"):
            host.model(**inputs, mm_encoder_outputs={"image": other})


def test_training(host):
    assert_training(host, "spatial_pool")


def assert_training(host: Host, method: str) -> None:
    model = host.model
    inputs = host.inputs([[3, 0, 4], [8, 0, 5]], pad_left=False)
    labels = inputs["input_ids"].masked_fill(
        (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == PAD), -100
    )
    with tokenprune.apply(model, method, keep_ratio=0.5) as handle:
        output = model(**inputs, labels=labels)
        output.loss.backward()
        kept = handle.kept_positions
    try:
        assert output.loss.isfinite()
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


def test_layouts_without_padding_and_with_padding_right(llava):
    inputs = llava.inputs([[3, 0, 4, 0, 5], [9]], pad_left=False)
    with tokenprune.apply(llava.model, "random", num_keep=5) as handle:
        short = logits_of(llava, inputs)
        kept = handle.kept_positions
    assert [len(row) for row in kept] == [1 + 3 + 7 + 4 + 7 + 5, 10]
    assert short.shape[1] == 27
    for row, alone in enumerate(rows_alone(llava, inputs)):
        with tokenprune.apply(llava.model, "random", num_keep=5):
            expected = logits_of(llava, alone)
        torch.testing.assert_close(short[row, : expected.shape[1]], expected[0], atol=1e-5, rtol=0)


def test_steps_by_hand(llava):
    """forward with a cache, with a mask of the whole sequence or with none."""
    inputs = llava.inputs(ONE)
    token = torch.tensor([[7]])
    ones = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    results = []
    with tokenprune.apply(llava.model, "random", num_keep=5) as handle, torch.no_grad():
        for mask in (ones, None):
            cache = cache_in(llava.model(**inputs, use_cache=True))
            assert cache.get_seq_length() == inputs["input_ids"].shape[1]
            assert cache.layers[0].keys.shape[2] == len(handle.kept_positions[0])
            step = llava.model(input_ids=token, **{CACHE: cache}, attention_mask=mask).logits
            results.append(step)
            second = llava.model(input_ids=token, **{CACHE: cache}).logits
            results[-1] = torch.cat([step, second], 1)
        longer = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], token, token], 1),
            "attention_mask": torch.cat([ones, ones[:, :1]], 1),
        }
        whole = llava.model(**longer).logits[:, -2:]
    for result in results:
        torch.testing.assert_close(result, whole, atol=1e-5, rtol=0)


def test_a_new_image_in_a_later_turn(llava):
    inputs = llava.inputs([[3, 0, 4, 0, 5]])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    cut = 1 + 3 + 18 + 2
    with tokenprune.apply(llava.model, "random", num_keep=5), torch.no_grad():
        whole = llava.model(**inputs).logits
        first = llava.model(input_ids=ids[:, :cut], pixel_values=pixels[:1], use_cache=True)
        second = llava.model(
            input_ids=ids[:, cut:], pixel_values=pixels[1:], **{CACHE: cache_in(first)}
        )
    # Random draws for each image alone what it draws for the first of two.
    both = torch.cat([first.logits, second.logits], 1)
    assert both.shape == whole.shape


def test_embeddings_of_placeholders(llava):
    inputs = llava.inputs(ONE)
    with tokenprune.apply(llava.model, "random", num_keep=5):
        expected = logits_of(llava, inputs)
        embeddings = llava.model.get_input_embeddings()(inputs["input_ids"])
        again = logits_of(
            llava, {"inputs_embeds": embeddings, "pixel_values": inputs["pixel_values"]}
        )
    assert torch.equal(expected, again)


# -- undone -----------------------------------------------------------------------------------


def test_undo_leaves_nothing_behind(host):
    inputs = host.inputs(ONE)
    plain, whole = logits_of(host, inputs), generated(host, inputs)
    before = traces(host.model)
    with tokenprune.apply(host.model, "fastervlm", keep_ratio=0.5) as handle:
        assert not torch.equal(logits_of(host, inputs)[:, -1], plain[:, -1])
        generated(host, inputs)
    handle.remove()
    assert traces(host.model) == before
    assert torch.equal(logits_of(host, inputs), plain)
    again = generated(host, inputs)
    assert torch.equal(again.sequences, whole.sequences)
    assert torch.equal(torch.stack(again.logits), torch.stack(whole.logits))


@pytest.mark.parametrize("where", ["tower", "layer", "method"])
def test_undo_after_an_exception_in_the_middle(host, where):
    inputs = host.inputs(ONE)
    plain = logits_of(host, inputs)
    before = traces(host.model)

    class Failing(type(get_method("fastervlm"))):  # type: ignore[misc]
        def _reduce(self, tokens: VisionTokens, num_keep: int) -> Any:
            if where == "method":
                raise KeyboardInterrupt
            return super()._reduce(tokens, num_keep)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    adapter = find_adapter(host.model.base_model)
    module = {
        "tower": adapter.attention_layer,
        "layer": adapter.language_model.layers[1],
        "method": nn.Identity(),
    }[where]
    hook = module.register_forward_hook(stop)

    def reduced() -> None:
        with tokenprune.apply(host.model, Failing(), keep_ratio=0.5):
            logits_of(host, inputs)

    with pytest.raises(KeyboardInterrupt):
        reduced()
    hook.remove()
    assert traces(host.model) == before
    assert torch.equal(logits_of(host, inputs), plain)


def test_the_newest_is_in_effect_and_the_one_before_comes_back(llava):
    inputs = llava.inputs(ONE)
    before = traces(llava.model)
    outer = tokenprune.apply(llava.model, "random", num_keep=8)
    first = logits_of(llava, inputs)
    inner = tokenprune.apply(llava.model, "divprune", num_keep=3)
    assert logits_of(llava, inputs).shape[1] == first.shape[1] - 10
    assert inner.report().tokens_after == [3, 3]
    inner.remove()
    assert torch.equal(logits_of(llava, inputs), first)
    inner = tokenprune.apply(llava.model, "divprune", num_keep=3)
    outer.remove()  # the wrong way round
    logits_of(llava, inputs)
    assert inner.report().tokens_after == [3, 3]
    assert outer.report().tokens_after == [8, 8]
    inner.remove()
    inner.remove()
    assert traces(llava.model) == before


def test_saving_inside_saves_the_plain_model(llava, tmp_path):
    with tokenprune.apply(llava.model, "random", num_keep=5):
        logits_of(llava, llava.inputs(ONE))
        llava.model.save_pretrained(tmp_path / "inside")
    llava.model.save_pretrained(tmp_path / "outside")
    for name in ("config.json", "model.safetensors"):
        inside = (tmp_path / "inside" / name).read_bytes()
        assert inside == (tmp_path / "outside" / name).read_bytes()


def test_a_copy_is_refused_inside(llava):
    with (
        tokenprune.apply(llava.model, "random", num_keep=5),
        pytest.raises(NotImplementedError, match="cannot be copied or pickled"),
    ):
        copy.deepcopy(llava.model)
    copy.deepcopy(llava.model)


# -- said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"num_keep": 7}, {"num_keep": 500}, {"keep_ratio": 0.37}])
def test_the_count_is_known_beforehand(host, budget):
    inputs = host.inputs([[3, 0, 4, 0, 5], [2, 0, 0, 9]])
    with tokenprune.apply(host.model, "random", **budget) as handle:
        expected = handle.retained_count(host.sizes(inputs))
        logits_of(host, inputs)
        report = handle.report()
        kept = sum(
            int((inputs["input_ids"][row, columns] == IMAGE).sum())
            for row, columns in enumerate(handle.kept_positions)
        )
        assert handle.retained_count(report.tokens_before) == expected
    assert report.tokens_after == expected
    assert kept == sum(expected)
    assert [t for t in expected if t < 1] == []


def test_counts_of_qwen_from_pixels():
    with tokenprune.apply(build("qwen2_vl").model, "random", keep_ratio=0.25) as handle:
        assert handle.retained_count([(112, 84), (224, 224)]) == [3, 16]
        assert handle.retained_count(torch.tensor([[1, 8, 6], [1, 16, 16]])) == [3, 16]
        with pytest.raises(ValueError, match=r"multiples of 28 pixels.* got 100 x 90"):
            handle.retained_count([(100, 90)])


def test_report(llava):
    inputs = llava.inputs(ONE)
    with tokenprune.apply(llava.model, "random", num_keep=5) as handle:
        with pytest.raises(RuntimeError, match="no images have come through"):
            handle.report()
        assert handle.last is None
        output = generated(llava, inputs)
        report = handle.report()
    assert report.tokens_before == [16, 16]
    assert report.dropped == [11, 11]
    assert report.seconds_reducing > 0
    # 22 columns less, of 2 layers x keys and values x 2 heads x 8 numbers x 4 bytes
    assert report.kv_cache_bytes_saved == 22 * 2 * 2 * 2 * 8 * 4
    assert cache_in(output).layers[0].keys.shape[2] == len(handle.kept_positions[0]) + 4
    assert "dropped" in str(report)
    assert " 22" in str(report)
    assert handle.last.keep_indices.shape == (2, 5)


def test_what_cannot_be_is_refused(llava, caplog):
    model = llava.model
    inputs = llava.inputs(ONE)
    for arguments, error, message in (
        ({}, ValueError, "exactly one of num_keep and keep_ratio"),
        ({"num_keep": 3, "keep_ratio": 0.5}, ValueError, "exactly one of"),
        ({"num_keep": 0}, ValueError, "num_keep must be at least 1, got 0"),
        ({"num_keep": 2.5}, TypeError, "num_keep must be an int"),
        ({"keep_ratio": 0.0}, ValueError, r"keep_ratio must be in \(0, 1\], got 0.0"),
        ({"keep_ratio": 1.5}, ValueError, "got 1.5"),
        ({"keep_ratio": "half"}, TypeError, "keep_ratio must be a number, got str"),
        ({"num_keep": 3, "positions": "new"}, ValueError, "'original' or 'compact', got 'new'"),
    ):
        with pytest.raises(error, match=message):
            tokenprune.apply(model, "random", **arguments)
    with pytest.raises(ValueError, match="method must be one of"):
        tokenprune.apply(model, "best", num_keep=3)
    with pytest.raises(TypeError, match="method must be a name or a Method, got int"):
        tokenprune.apply(model, 3, num_keep=3)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        tokenprune.apply("llava", "random", num_keep=3)
    with pytest.raises(NotImplementedError, match=r"no adapter for Linear .*gemma3.*qwen3_vl"):
        tokenprune.apply(nn.Linear(2, 2), "random", num_keep=3)
    weights = dict.fromkeys(("dw_weight", "pw_weight", "pw_bias"), torch.zeros(1))
    weights |= dict.fromkeys(("q_weight", "q_bias", "k_weight", "k_bias"), torch.zeros(1))
    with pytest.raises(NotImplementedError, match="BackgroundAnchored needs cls"):
        tokenprune.apply(
            build("qwen2_vl").model, get_method("background_anchored", **weights), num_keep=3
        )
    for method, options, message in (
        ("visionzip", {"keep_cls": True}, "VisionZip gives 5 rows for a budget of 4 tokens"),
        ("prumerge", {"keep_rest": True}, "PruMerge gives 5 rows for a budget of 4 tokens"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            tokenprune.apply(model, get_method(method, **options), num_keep=3)
    with pytest.raises(NotImplementedError, match="compiled already"):
        tokenprune.apply(torch.compile(model), "random", num_keep=3)
    with pytest.raises(NotImplementedError, match="apply to what it wraps"):
        tokenprune.apply(nn.DataParallel(model), "random", num_keep=3)
    assert not model.model._forward_pre_hooks
    with tokenprune.apply(model, "random", num_keep=3):
        with pytest.raises(NotImplementedError, match="inputs_embeds without images"):
            model(inputs_embeds=torch.zeros(1, 4, 32))
        with pytest.raises(NotImplementedError, match="static cache"):
            generated(llava, inputs, cache_implementation="static")
        if CHUNKS_ENCODED_IMAGES:
            with pytest.raises(NotImplementedError, match=r"in pieces .* \(prefill_chunk_size\)"):
                generated(llava, inputs, prefill_chunk_size=16)
        with pytest.raises(NotImplementedError, match=r"must be \[B, L\] .* shape \[1, 1, 2, 2\]"):
            model(**{**inputs, "attention_mask": torch.ones(1, 1, 2, 2)})
        with pytest.raises(NotImplementedError, match="logits_to_keep as a tensor"):
            model(**inputs, logits_to_keep=torch.tensor([1]))
        first = model(**inputs, use_cache=True)
        with pytest.raises(ValueError, match=r"attention_mask must have 50 columns, .* got 40"):
            model(
                input_ids=torch.tensor([[3]]),
                **{CACHE: cache_in(first)},
                attention_mask=torch.ones(1, 40),
            )
        logits_of(llava, {"input_ids": torch.tensor([[5, 6, 7]])})  # text alone is fine
    with tokenprune.apply(model, get_method("random"), num_keep=3, strict=False) as handle:
        model(inputs_embeds=torch.zeros(1, 4, 32))
        (said,) = caplog.records
        assert said.name == "tokenprune"
        assert "inputs_embeds without images" in said.getMessage()
        logits_of(llava, {**inputs, "pixel_values": inputs["pixel_values"] * float("nan")})
        packed = {**inputs, "position_ids": torch.arange(49)[None] % 25}
        packed.pop("attention_mask")
        with pytest.raises(NotImplementedError, match="packed into one row"):
            logits_of(llava, packed)
    with pytest.raises(RuntimeError, match="handle was removed"):
        handle.__enter__()


def test_a_method_that_breaks_its_promise_is_named(llava):
    inputs = llava.inputs(ONE)

    class Broken(type(get_method("random"))):  # type: ignore[misc]
        result: Any = None

        def _reduce(self, tokens: VisionTokens, num_keep: int) -> Any:
            return type(self).result and type(self).result(super()._reduce(tokens, num_keep))

    def repeated(reduced: Any) -> Any:
        return dataclasses.replace(reduced, keep_indices=reduced.keep_indices * 0)

    def short(reduced: Any) -> Any:
        return dataclasses.replace(reduced, keep_indices=reduced.keep_indices[:, 1:])

    def longer(reduced: Any) -> Any:
        return dataclasses.replace(reduced, extra=reduced.features[:, :1])

    for result, error, message in (
        (None, TypeError, "Broken must return ReducedTokens, got NoneType"),
        (staticmethod(repeated), ValueError, "must give keep_indices ascending and below 16"),
        (staticmethod(short), ValueError, "must keep 5 tokens of each of 2 images"),
        (staticmethod(longer), NotImplementedError, "Broken adds 1 rows .* apply has no place"),
    ):
        Broken.result = result
        with (
            tokenprune.apply(llava.model, Broken(), num_keep=5),
            pytest.raises(error, match=message),
        ):
            logits_of(llava, inputs)


def test_base_and_head_applied_together(llava):
    inputs = llava.inputs(ONE)
    before = traces(llava.model)
    with (
        tokenprune.apply(llava.model.model, "random", num_keep=8),
        tokenprune.apply(llava.model, "random", num_keep=5) as handle,
    ):
        assert llava.model(**inputs, labels=inputs["input_ids"]).loss.isfinite()
        assert handle.report().tokens_after == [5, 5]
        logits_of(llava, {"input_ids": torch.tensor([[5, 6, 7]])})
        assert handle.kept_positions[0].tolist() == [0, 1, 2]
    assert traces(llava.model) == before


def test_nan_features_are_refused(llava):
    inputs = llava.inputs(ONE)
    inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
    with (
        tokenprune.apply(llava.model, "random", num_keep=3),
        pytest.raises(ValueError, match="features must be finite"),
    ):
        logits_of(llava, inputs)


def test_a_host_that_goes_another_way_is_noticed(llava, monkeypatch):
    inputs = llava.inputs(ONE)
    base = llava.model.model

    @functools.wraps(base.forward)
    def forward(**given: Any) -> Any:
        embeddings = base.get_input_embeddings()(given["input_ids"])
        return base.language_model.forward(inputs_embeds=embeddings)

    monkeypatch.setitem(base.__dict__, "forward", forward)
    with (
        tokenprune.apply(llava.model, "random", num_keep=3),
        pytest.raises(RuntimeError, match="no visual token was removed"),
    ):
        logits_of(llava, inputs)


# -- beside other tools ---------------------------------------------------------------------------


def test_lora():
    torch.manual_seed(0)
    host = HOSTS["llava"]()
    inputs = host.inputs(ONE)
    with tokenprune.apply(host.model, "divprune", num_keep=5):
        expected = logits_of(host, inputs)
    model = peft.get_peft_model(
        host.model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with tokenprune.apply(model, "divprune", num_keep=5) as handle:
        output = model(**inputs, labels=labels)
        output.loss.backward()
        model.generate(**inputs, **GREEDY)
    assert handle.report().tokens_after == [5, 5]
    torch.testing.assert_close(output.logits, expected)
    tuned = [p.grad for n, p in model.named_parameters() if "lora_B" in n and "language" in n]
    assert tuned
    assert all(gradient.abs().sum() > 0 for gradient in tuned)


def test_device_map():
    torch.manual_seed(0)
    host = HOSTS["llava"]()
    inputs = host.inputs(ONE)
    with tokenprune.apply(host.model, "fastervlm", num_keep=5):
        expected = generated(host, inputs)
    host.model = accelerate.dispatch_model(
        host.model, device_map={"": "cpu"}, force_hooks=True, main_device="cpu"
    )
    before = traces(host.model)
    with tokenprune.apply(host.model, "fastervlm", num_keep=5):
        assert torch.equal(generated(host, inputs).sequences, expected.sequences)
    assert traces(host.model) == before


@pytest.mark.slow
def test_compiled_inside(llava):
    inputs = llava.inputs(ONE)
    with tokenprune.apply(llava.model, "divprune", num_keep=5) as handle, torch.no_grad():
        expected = llava.model(**inputs).logits
        torch.compiler.reset()
        actual = torch.compile(llava.model, backend="aot_eager")(**inputs).logits
        assert handle.report().tokens_after == [5, 5]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    torch.compiler.reset()


def test_an_adapter_from_another_package(tmp_path, monkeypatch):
    (tmp_path / "more_hosts.py").write_text(
        "from tokenprune.hosts.families.llava import Llava\n"
        "class Mine(Llava):\n"
        "    model_types = ('llava_of_mine',)\n"
    )
    info = tmp_path / "more_hosts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-hosts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokenprune.adapters]\nmine = more_hosts:Mine\n")
    torch.manual_seed(0)
    host = HOSTS["llava"]()
    monkeypatch.setattr(type(host.model.config), "model_type", "llava_of_mine")
    with pytest.raises(NotImplementedError, match="without an adapter of its own"):
        tokenprune.apply(host.model, "fastervlm", num_keep=3)
    monkeypatch.syspath_prepend(tmp_path)
    with tokenprune.apply(host.model, "fastervlm", num_keep=3) as handle:
        logits_of(host, host.inputs(ONE))
    assert handle.report().tokens_after == [3, 3]


def test_a_broken_adapter_of_another_package_is_left_out(llava, tmp_path, monkeypatch):
    (tmp_path / "broken_hosts.py").write_text("import nothing_of_that_name\n")
    info = tmp_path / "broken_hosts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-hosts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tokenprune.adapters]\nbroken = broken_hosts:Mine\nno_adapter = math:pi\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.warns(UserWarning, match="'broken', .* ModuleNotFoundError: .*nothing_of_that_name"),
        pytest.warns(UserWarning, match="'no_adapter', .* TypeError: .* subclass of Adapter"),
        tokenprune.apply(llava.model, "random", num_keep=3) as handle,
    ):
        logits_of(llava, llava.inputs(ONE))
    assert handle.report().tokens_after == [3, 3]


def test_counts_of_several_images_in_a_prompt():
    """LLaVA-OneVision shows each of several images by its overview alone."""
    host = build("llava_onevision")
    sizes = [(100, 90), (60, 120), (100, 90)]
    pixels = torch.randn(3, 5, 3, 56, 56)
    counts = [2, 1]
    with torch.no_grad():
        features = host.model.model.get_image_features(
            pixels, torch.tensor(sizes), batch_num_images=torch.tensor(counts)
        ).pooler_output
    with tokenprune.apply(host.model, "random", keep_ratio=1.0) as handle:
        expected = [len(feature) for feature in features]
        assert handle.retained_count(sizes, counts) == expected
        assert handle.retained_count(torch.tensor(sizes), torch.tensor(counts)) == expected
        assert (
            handle.retained_count(sizes)[2] == expected[2] > handle.retained_count(sizes, counts)[0]
        )
        with pytest.raises(ValueError, match=r"add up to the 3 sizes, got \[1, 1\]"):
            handle.retained_count(sizes, [1, 1])
    with tokenprune.apply(build("llava").model, "random", num_keep=5) as handle:
        assert handle.retained_count([None] * 3, counts) == [5, 5, 5]


def test_labels_that_are_shifted_already(llava):
    inputs = llava.inputs(ONE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with tokenprune.apply(llava.model, "random", num_keep=5):
        expected = llava.model(**inputs, labels=labels).loss
        actual = llava.model(**inputs, labels=labels, shift_labels=shifted).loss
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["internvl", "idefics3", "llava"])
def test_the_report_calls_crops_crops(name):
    host = build(name)
    with tokenprune.apply(host.model, "random", num_keep=5) as handle:
        logits_of(host, host.inputs(ONE))
        unit = "image" if name == "llava" else "crop"
        assert handle.report().unit == unit
        assert str(handle.report()).split()[0] == unit


@pytest.mark.parametrize("method", ["random", "fastv"])
def test_rows_of_a_cache_in_another_order(method):
    """Chosen, repeated or reordered, each row goes on as it would have."""
    torch.manual_seed(0)
    host = HOSTS["llava"](text_config=transformers.Qwen2Config(**{**TEXT, "num_hidden_layers": 4}))
    inputs = host.inputs(THREE)
    tokens, more = torch.tensor([[7], [8], [9]]), torch.tensor([[17], [18], [19]])
    with tokenprune.apply(host.model, method, num_keep=5), torch.no_grad():
        cache = cache_in(host.model(**inputs, use_cache=True))
        steps = [host.model(input_ids=step, **{CACHE: cache}).logits for step in (tokens, more)]
        for change, rows in (
            ("batch_select_indices", [2, 0]),
            ("reorder_cache", [1, 2, 0]),
            ("reorder_cache", [1, 1, 0]),
            ("batch_repeat_interleave", [0, 0, 1, 1, 2, 2]),
        ):
            cache = cache_in(host.model(**inputs, use_cache=True))
            first = host.model(input_ids=tokens, **{CACHE: cache}).logits
            torch.testing.assert_close(first, steps[0], atol=1e-5, rtol=0)
            getattr(cache, change)(2 if change == "batch_repeat_interleave" else torch.tensor(rows))
            second = host.model(input_ids=more[rows], **{CACHE: cache}).logits
            torch.testing.assert_close(second, steps[1][rows], atol=1e-5, rtol=0)
        cache = cache_in(host.model(**inputs, use_cache=True))
        layer = cache.layers[0]
        layer.keys = layer.keys[[1, 0, 2]]
        with pytest.raises(NotImplementedError, match=r"keys of a cache .* exchanged from outside"):
            host.model(input_ids=more, **{CACHE: cache})
