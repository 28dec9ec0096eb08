"""Conversations: further turns in a returned cache are those of the whole model, tokens hidden."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tokenprune
from tokenprune import Method, get_method

from .hosts import CACHE, HOSTS, IMAGE, TEXT, Host, cache_in
from .test_apply import logits_of, traces
from .test_layers import deep, eager, layers_of

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "divprune": ("divprune", {}),
    "spatial_pool": ("spatial_pool", {}),
    "fastv": ("fastv", {"layer": 1}),
    "fastv later": ("fastv", {"layer": 2}),
    "pyramiddrop": ("pyramiddrop", {"layers": (1, 3), "ratio": 0.5}),
}
BATCH = [[3, 0, 4, 0, 5], [6], [2, 0, 9]]
TURNS = 3
NEW, ASKED = 3, 4  # tokens that are generated, and that are asked, in each turn
_built: dict[str, Host] = {}


def build(name: str) -> Host:
    if name not in _built:
        _built[name] = deep(name)
    return _built[name]


@pytest.fixture(params=HOSTS)
def host(request) -> Host:
    return build(request.param)


def method_of(name: str) -> Method:
    method, options = METHODS[name]
    return get_method(method, **options)


class Forced:
    """Generation says these tokens, whatever the logits."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens[:, self.step, None]
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


@contextmanager
def hidden_columns(host: Host, hidden: dict[int, Tensor]) -> Iterator[None]:
    """In the whole model, columns [B, L] closed from some layers on, in prompts and steps."""

    def before(number: int) -> Any:
        def hide(module: Any, args: Any, kwargs: Any) -> Any:
            mask, states = kwargs["attention_mask"], args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get(CACHE)
            past = 0 if cache is None else cache.get_seq_length(number)
            total, held = past + states.shape[1], mask.shape[3]
            for first, columns in hidden.items():
                if number >= first:
                    gone = torch.nn.functional.pad(columns, (0, max(0, total - columns.shape[1])))
                    gone = gone[:, None, None, total - held : total]
                    mask = mask.masked_fill(gone, torch.finfo(mask.dtype).min)
            return args, kwargs | {"attention_mask": mask}

        return hide

    hooks = [
        layer.register_forward_pre_hook(before(number), with_kwargs=True)
        for number, layer in enumerate(layers_of(host))
    ]
    try:
        with eager(host):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class Conversation:
    """Turns of one model: each a question, and an answer that is forced."""

    def __init__(self, host: Host, inputs: dict[str, Any]) -> None:
        self.host, self.inputs = host, dict(inputs)
        self.cache: Any = None
        self.said = 0
        self.logits: list[Tensor] = []

    def words(self, count: int) -> Tensor:
        self.said += 1
        generator = torch.Generator().manual_seed(self.said)
        return torch.randint(5, 90, (len(self.inputs["input_ids"]), count), generator=generator)

    def branch(self) -> Conversation:
        other = Conversation(self.host, self.inputs)
        other.cache, other.said = copy.deepcopy(self.cache), self.said
        other.logits = list(self.logits)
        return other

    def turn(self, **images: Any) -> None:
        """Generates an answer; then the next question follows."""
        output = self.host.model.generate(
            **self.inputs,
            **images,
            **({} if self.cache is None else {CACHE: self.cache}),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            logits_processor=[Forced(self.words(NEW))],
            return_dict_in_generate=True,
            output_logits=True,
        )
        self.logits.append(torch.stack(output.logits, 1))
        self.cache = cache_in(output)
        self.inputs = {
            name: self.longer(name, value)
            for name, value in self.inputs.items()
            if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
        }
        self.inputs["input_ids"] = torch.cat([output.sequences, self.words(ASKED)], 1)

    def longer(self, name: str, value: Tensor) -> Tensor:
        fill = int(name == "attention_mask")
        return torch.nn.functional.pad(value, (0, NEW + ASKED), value=fill)


def dropped(host: Host, handle: tokenprune.Handle, inputs: Any, method: Method) -> dict[int, Any]:
    """What each layer no longer sees, as the handle tells it."""
    placeholders = inputs["input_ids"] == IMAGE
    if method.needs != ("layers",):
        gone = placeholders.clone()
        for row, kept in enumerate(handle.kept_positions):
            gone[row, kept] = False
        return {0: gone}
    by_layer = handle.outcome().by_layer
    return {
        number: placeholders & ~keep for number, keep in enumerate(by_layer) if keep is not None
    }


def whole_turns(host: Host, inputs: Any, hidden: dict[int, Tensor]) -> list[Tensor]:
    with hidden_columns(host, hidden):
        whole = Conversation(host, inputs)
        for _ in range(TURNS):
            whole.turn()
    return whole.logits


def assert_turns(host: Host, name: str, rows: list[list[int]], where: str) -> None:
    inputs, method = host.inputs(rows), method_of(name)
    if method.merges:  # features are made anew: hiding is no reference, see below
        raise AssertionError(name)
    talk = Conversation(host, inputs)
    before = traces(host.model)
    with tokenprune.apply(host.model, method, num_keep=5) as handle:
        talk.turn()
        hidden = dropped(host, handle, inputs, method)
        if where == "inside":
            for _ in range(TURNS - 1):
                talk.turn()
    if where == "after":
        for _ in range(TURNS - 1):
            talk.turn()
    elif where == "under another":
        with tokenprune.apply(host.model, "random", num_keep=2):
            for _ in range(TURNS - 1):
                talk.turn()
    assert traces(host.model) == before
    assert any(bool(gone.any()) for gone in hidden.values())
    for ours, whole in zip(talk.logits, whole_turns(host, inputs, hidden), strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("where", ["inside", "after", "under another"])
@pytest.mark.parametrize("rows", [BATCH[:1], BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("name", ["divprune", "fastv", "pyramiddrop"])
def test_three_turns_are_the_whole_models(host, name, rows, where):
    assert_turns(host, name, rows, where)


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_three_turns_of_eager_attention(name, where):
    host = build("llava")
    with eager(host):
        assert_turns(host, name, BATCH, where)


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize("window", [10, 24, 60])
@pytest.mark.parametrize("name", ["divprune", "fastv later"])
def test_three_turns_beside_a_sliding_window(name, window, where):
    assert_turns(deep("gemma3", sliding_window=window), name, BATCH, where)


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize(
    ("name", "window"), [("divprune", 10), ("divprune", 24), ("divprune", 60), ("fastv", 50)]
)
def test_three_turns_beside_a_sliding_window_in_all_layers(name, window, where):
    torch.manual_seed(0)
    text = {**TEXT, "num_hidden_layers": 4, "sliding_window": window}
    host = HOSTS["llava"](text_config=transformers.MistralConfig(**text))
    assert_turns(host, name, BATCH, where)


# -- further images -------------------------------------------------------------------------------


def with_images(host: Host, talk: Conversation) -> dict[str, Any]:
    """Puts an image into each row's question, and returns what it comes as."""
    rows = len(talk.inputs["input_ids"])
    torch.manual_seed(9)
    images = host.images([1] * rows)
    with torch.no_grad():
        lengths = host.lengths(images)
    if len(set(lengths)) > 1:
        pytest.skip("images of unequal size do not stand side by side in a question")
    marks = torch.full((rows, lengths[0]), IMAGE)
    asked = torch.cat([talk.inputs["input_ids"], marks, talk.words(ASKED)], 1)
    more = asked.shape[1] - talk.inputs["input_ids"].shape[1]
    for name, value in talk.inputs.items():
        fill = int(name == "attention_mask")
        talk.inputs[name] = torch.nn.functional.pad(value, (0, more), value=fill)
    talk.inputs["input_ids"] = asked
    for name, value in host.extra(asked).items():
        talk.inputs[name] = torch.cat([talk.inputs[name][:, :-more], value[:, -more:]], 1)
    return images


@pytest.mark.parametrize("rows", [BATCH[:1], BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("name", ["divprune", "fastv"])
@pytest.mark.parametrize("kind", ["llava", "llava_next", "gemma3", "idefics3", "smolvlm"])
def test_a_new_image_in_the_second_turn(kind, name, rows):
    host, method = build(kind), method_of(name)
    inputs = host.inputs(rows)
    talk = Conversation(host, inputs)
    with tokenprune.apply(host.model, method, num_keep=5) as handle:
        talk.turn()
        hidden = dropped(host, handle, inputs, method)
        images = with_images(host, talk)
        asked = dict(talk.inputs)
        talk.turn(**images)
        more = dropped_later(handle, asked, method)
        talk.turn()
    for layer, columns in more.items():
        before = hidden.get(layer, torch.zeros_like(columns[:, :0]))
        padded = torch.nn.functional.pad(before, (0, columns.shape[1] - before.shape[1]))
        hidden[layer] = padded | columns
    with hidden_columns(host, hidden):
        whole = Conversation(host, inputs)
        whole.turn()
        whole.turn(**with_images(host, whole))
        whole.turn()
    for ours, other in zip(talk.logits, whole.logits, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=0)


def dropped_later(handle: tokenprune.Handle, asked: Any, method: Method) -> dict[int, Tensor]:
    """As `dropped`, of the last turn, in columns of the whole sequence."""
    ids = asked["input_ids"]
    if method.needs != ("layers",):
        first = int(handle.kept_positions[0][0])
        gone = torch.zeros_like(ids, dtype=torch.bool)
        gone[:, first:] = ids[:, first:] == IMAGE
        for row, kept in enumerate(handle.kept_positions):
            gone[row, kept] = False
        return {0: gone}
    found = {}
    for number, keep in enumerate(handle.outcome().by_layer):
        if keep is not None:
            past = ids.shape[1] - keep.shape[1]
            gone = (ids[:, past:] == IMAGE) & ~keep
            found[number] = torch.nn.functional.pad(gone, (past, 0))
    return found


# -- what else happens to caches ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["divprune", "fastv"])
@pytest.mark.parametrize("where", ["inside", "after"])
def test_a_prefix_is_used_twice(name, where):
    host = build("llava")
    talk = Conversation(host, host.inputs(BATCH))
    with tokenprune.apply(host.model, method_of(name), num_keep=5):
        talk.turn()
        kept = talk.branch()
        if where == "inside":
            talk.turn()
            kept.turn()
    if where == "after":
        talk.turn()
        kept.turn()
    assert torch.equal(talk.logits[1], kept.logits[1])


@pytest.mark.parametrize("name", ["divprune", "fastv"])
@pytest.mark.parametrize("where", ["inside", "after"])
def test_a_cache_that_is_cropped(name, where):
    """By an answer, or into the prompt's last words: what is said again is what was said."""
    host = build("llava")
    inputs = host.inputs(BATCH[:1])
    text = torch.tensor([[7, 8, 9]])
    with tokenprune.apply(host.model, method_of(name), num_keep=5), torch.no_grad():
        cache = cache_in(host.model(**inputs, use_cache=True))
        first = host.model(input_ids=text, **{CACHE: cache}).logits
        if where == "inside":
            again = said_again(host, cache, inputs, text)
    if where == "after":
        again = said_again(host, cache, inputs, text)
    torch.testing.assert_close(again, first, atol=1e-5, rtol=0)


@torch.no_grad()
def said_again(host: Host, cache: Any, inputs: Any, text: Tensor) -> Tensor:
    length = inputs["input_ids"].shape[1]
    assert cache.get_seq_length() == length + 3
    cache.crop(-1)
    cache.crop(-4)  # two more of the text, two of the prompt
    assert cache.get_seq_length() == length - 2
    words = torch.cat([inputs["input_ids"][:, -2:], text], 1)
    return host.model(input_ids=words, **{CACHE: cache}).logits[:, 2:]


@pytest.mark.slow
def test_a_step_of_a_model_that_was_compiled_after():
    host = build("llava")
    inputs = host.inputs(BATCH[:1])
    words, mask = words_after(inputs, 1)
    with tokenprune.apply(host.model, "divprune", num_keep=5), torch.no_grad():
        cache = cache_in(host.model(**inputs, use_cache=True))
        expected = step(host, copy.deepcopy(cache), words, attention_mask=mask)
        torch.compiler.reset()
        compiled = torch.compile(host.model, backend="aot_eager")
        actual = compiled(input_ids=words, attention_mask=mask, **{CACHE: cache}).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    torch.compiler.reset()


def test_a_crop_into_the_images_is_refused_where_rows_differ():
    host = build("llava")
    with tokenprune.apply(host.model, "uniform", num_keep=5) as handle, torch.no_grad():
        cache = cache_in(host.model(**host.inputs([[3, 0, 4], [6, 0, 1]]), use_cache=True))
        one, other = handle.kept_positions
        assert (one < 7).sum() != (other < 7).sum()
        with pytest.raises(NotImplementedError, match="cannot be cropped to 7"):
            cache.crop(7 - cache.get_seq_length())


def test_a_cache_that_is_reset_is_new():
    host = build("llava")
    inputs = host.inputs(BATCH[:1])
    plain = logits_of(host, inputs)
    with tokenprune.apply(host.model, "divprune", num_keep=5), torch.no_grad():
        cache = cache_in(host.model(**inputs, use_cache=True))
    kinds = [type(layer).__mro__[1] for layer in cache.layers]
    cache.reset()
    assert [type(layer) for layer in cache.layers] == kinds
    with torch.no_grad():
        again = host.model(**inputs, **{CACHE: cache}).logits
    assert torch.equal(again, plain)


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_compact_positions_go_on_under_a_handle_alone(name):
    host = build("llava")
    talk = Conversation(host, host.inputs(BATCH))
    with tokenprune.apply(host.model, method_of(name), num_keep=5, positions="compact"):
        talk.turn()
        other, again = talk.branch(), talk.branch()
        talk.turn()
    with pytest.raises(NotImplementedError, match="'compact' can only be continued while"):
        other.turn()
    with tokenprune.apply(host.model, "random", num_keep=5):
        again.turn()
    assert torch.equal(again.logits[1], talk.logits[1])


# -- what goes wrong midway -----------------------------------------------------------------------


def shortened_cache(host: Host, inputs: Any, name: str = "divprune", **options: Any) -> Any:
    with tokenprune.apply(host.model, method_of(name), num_keep=5, **options), torch.no_grad():
        return cache_in(host.model(**inputs, use_cache=True))


@torch.no_grad()
def step(host: Host, cache: Any, words: Tensor, **given: Any) -> Tensor:
    return host.model(input_ids=words, **{CACHE: cache}, **given).logits


def words_after(inputs: Any, count: int = 3) -> tuple[Tensor, Tensor]:
    """Some words for each row, and the mask of the whole sequence."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, 90, (len(inputs["input_ids"]), count), generator=generator)
    return words, torch.nn.functional.pad(inputs["attention_mask"], (0, count), value=1)


def failing(host: Host, number: int, error: type[BaseException]) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return layers_of(host)[number].input_layernorm.register_forward_pre_hook(fail)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["divprune", "fastv"])
@pytest.mark.parametrize("where", ["under a handle", "outside"])
def test_a_step_that_failed_before_leaves_no_trace_in_the_next(name, error, where):
    host = build("llava")
    inputs = host.inputs(BATCH)
    words, mask = words_after(inputs)
    cache = shortened_cache(host, inputs, name)
    expected = step(host, copy.deepcopy(cache), words, attention_mask=mask)
    hook = failing(host, 0, error)
    with pytest.raises(error):
        step(host, cache, words, attention_mask=mask)
    hook.remove()
    before = traces(host.model)
    if where == "outside":
        again = step(host, cache, words, attention_mask=mask)
    else:
        with tokenprune.apply(host.model, "divprune", num_keep=5):
            again = step(host, cache, words, attention_mask=mask)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    after = traces(host.model)
    assert all(after[key] <= before[key] for key in before if key.endswith("hooks"))


def test_asking_a_cache_changes_no_step():
    host = build("llava")
    inputs = host.inputs(BATCH)
    words, mask = words_after(inputs)
    cache = shortened_cache(host, inputs)
    expected = step(host, copy.deepcopy(cache), words, attention_mask=mask)
    assert cache.get_mask_sizes(3, 0) == (mask.shape[1], 0)
    with tokenprune.apply(host.model, "divprune", num_keep=5):
        again = step(host, cache, words, attention_mask=mask)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_compact_is_refused_before_a_layer_has_grown(name):
    host = build("llava")
    inputs = host.inputs(BATCH)
    words, mask = words_after(inputs)
    cache = shortened_cache(host, inputs, name, positions="compact")
    held = [layer.keys.shape[2] for layer in cache.layers]
    with tokenprune.apply(host.model, method_of(name), num_keep=5, positions="compact"):
        expected = step(host, copy.deepcopy(cache), words, attention_mask=mask)
    with pytest.raises(NotImplementedError, match="'compact' can only be continued while"):
        step(host, cache, words, attention_mask=mask)
    assert [layer.keys.shape[2] for layer in cache.layers] == held
    with tokenprune.apply(host.model, method_of(name), num_keep=5, positions="compact"):
        again = step(host, cache, words, attention_mask=mask)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_an_interrupt_in_one_host_does_not_reach_another():
    one, other = deep("llava"), deep("llava")
    inputs = other.inputs(BATCH)
    words, mask = words_after(inputs)
    cache = shortened_cache(other, inputs)
    expected = step(other, copy.deepcopy(cache), words, attention_mask=mask)
    with tokenprune.apply(one.model, "divprune", num_keep=5), torch.no_grad():
        mine = cache_in(one.model(**inputs, use_cache=True))
        hook = failing(one, 1, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            step(one, mine, words, attention_mask=mask)
        hook.remove()
        again = step(other, cache, words, attention_mask=mask)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", [("divprune", "fastv"), ("fastv", "pyramiddrop")])
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_padding_in_the_images_of_a_second_turn(names, ratio):
    """Before the first cut, states of a second prompt have their padding still."""
    host = build("llava")
    first, second = host.inputs([[3, 0, 4], [6, 0, 1]]), host.inputs([[2, 0, 1], [5, 0, 4]], seed=4)
    past = first["input_ids"].shape[1]
    marks = second["attention_mask"].clone()
    second["attention_mask"] = torch.cat([torch.ones_like(first["attention_mask"]), marks], 1)
    logits = []
    for pads in (0, 4):
        given = dict(second)
        if pads:
            ids = given["input_ids"]
            given["input_ids"] = torch.nn.functional.pad(ids, (pads, 0), value=5)
            left = torch.zeros(2, pads, dtype=marks.dtype)
            mask = given["attention_mask"]
            given["attention_mask"] = torch.cat([mask[:, :past], left, mask[:, past:]], 1)
        given["position_ids"] = (given["attention_mask"].cumsum(1) - 1)[:, past:].clamp(min=0)
        cache = shortened_cache(host, first, names[0])
        method = method_of(names[1])
        with tokenprune.apply(host.model, method, keep_ratio=ratio), torch.no_grad():
            logits.append(host.model(**given, **{CACHE: cache}).logits[:, -1])
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_crops_to_nothing_and_beyond():
    host = build("llava")
    inputs = host.inputs(BATCH[:1])
    plain = logits_of(host, inputs)
    for more in (0, 3):
        cache = shortened_cache(host, inputs)
        cache.crop(-(cache.get_seq_length() + more))
        assert cache.get_seq_length() == 0
        with torch.no_grad():
            assert torch.equal(host.model(**inputs, **{CACHE: cache}).logits, plain)


def test_a_compact_cache_is_not_cropped_among_what_left():
    host = build("llava")
    inputs = host.inputs(BATCH[:1])
    cache = shortened_cache(host, inputs, positions="compact")
    cache.crop(-2)
    with pytest.raises(NotImplementedError, match="'compact' cannot be cropped to 12 columns"):
        cache.crop(12 - cache.get_seq_length())


@pytest.mark.parametrize("name", ["divprune", "fastv"])
def test_masks_of_other_columns_and_foreign_models_are_refused(name):
    host, twin = build("llava"), copy.deepcopy(build("llava"))
    inputs = host.inputs(BATCH[:1])
    words, mask = words_after(inputs)
    total = mask.shape[1]
    cache = shortened_cache(host, inputs, name)
    held = cache.layers[-1].keys.shape[2]
    wide = torch.ones(1, 1, 3, total, dtype=torch.bool).tril(total - 3)
    narrow = torch.ones(1, 1, 3, held + 3, dtype=torch.bool).tril(held)
    expected = step(host, copy.deepcopy(cache), words, attention_mask=mask)
    with tokenprune.apply(host.model, method_of(name), num_keep=5):
        again = step(host, copy.deepcopy(cache), words, attention_mask=wide)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match=f"attention_mask must have {total} columns"):
            step(host, copy.deepcopy(cache), words, attention_mask=narrow)
    # Where a first layer holds all columns, torch says so before us.
    with pytest.raises(RuntimeError, match=r"model that filled it alone|must match"):
        step(host, copy.deepcopy(cache), words, attention_mask=narrow)
    with pytest.raises(RuntimeError, match="goes on in the model that filled it alone"):
        step(twin, copy.deepcopy(cache), words, attention_mask=mask)


def test_keys_exchanged_before_an_image_are_refused():
    host = build("llava")
    inputs = host.inputs([[3, 0, 4], [6, 0, 1]])
    cache = shortened_cache(host, inputs)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    with (
        tokenprune.apply(host.model, "divprune", num_keep=5),
        pytest.raises(NotImplementedError, match="exchanged from outside"),
    ):
        host.model(**{**inputs, "attention_mask": None}, **{CACHE: cache})


def test_nothing_is_kept_that_is_over(tmp_path):
    """Handles that are forgotten, forwards that fail, long answers outside of a handle."""
    host = deep("llava")
    inputs = host.inputs(BATCH)
    cache = shortened_cache(host, inputs)
    for count in range(4):
        words, mask = words_after(inputs, 1)
        more = torch.nn.functional.pad(mask, (0, count), value=1)
        step(host, cache, words, attention_mask=more)
    assert cache.layers[0].memory.origin.pending is None
    host.model.train()
    with tokenprune.apply(host.model, method_of("fastv"), num_keep=5) as handle:
        host.model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert handle.last is not None
        found = handle.last if isinstance(handle.last, list) else [handle.last]
        assert not any(one.features.requires_grad for one in found)
    kept = weakref.ref(host.model.model)
    tokenprune.apply(host.model, "divprune", num_keep=5)
    del host, handle, cache
    gc.collect()
    assert kept() is None
