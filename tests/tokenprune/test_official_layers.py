"""Methods in the language model's layers as their official code, beside a plain writing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tokenprune
from tokenprune import LayerTokens, get_method
from tokenprune.hosts.memory import Memory
from tokenprune.hosts.registry import find_adapter
from tokenprune.method import Cut

from . import flash
from .families.proof import ASKED, NEW, longer, said
from .hosts import CACHE, IMAGE, Host, cache_in
from .plain_layers import Plain, PlainDART, PlainPACT, PlainSparseVLM, plain_logits
from .test_apply import generated, logits_of
from .test_layers import assert_exact, assert_no_cache, assert_rows, deep, mistral

ROW = [[5, 0, 6]]
ROWS = [[5, 0, 6], [7], [9, 0, 3]]  # of unequal length, one of them without image
HOSTS = ("llava", "llava_next", "qwen2_5_vl")
DART = {"official": True, "layer": 2, "image_pivots": 2, "text_pivots": 2}
SPARSEVLM = {"official": True, "layers": (0, 1, 2), "num_heads": 3}
CUTOFF = 0.3  # random keys are farther from each other than a trained model's
NOT_SERVED = {("qwen2_5_vl", "sparsevlm"): "several axes of positions"}


_built: dict[str, Host] = {}


def build(name: str) -> Host:
    """Four layers, and a final norm that half of the channels hardly pass: it must be noticed."""
    if name not in _built:
        _built[name] = deep(name)
        norm_of(_built[name]).weight.data[::2] = 0.01
    return _built[name]


def norm_of(host: Host) -> Any:
    return find_adapter(host.model).language_model.norm


def dart(host: Host) -> Plain:
    """6 of an image's tokens: two pivots, and one for each of four."""
    return PlainDART(2, 1, 2, norm_of(host))


def sparsevlm(version: int) -> Any:
    def plain(host: Host) -> Plain:
        num_tokens = int((host.inputs(ROW)["input_ids"] == IMAGE).sum())
        counts = get_method("sparsevlm", **SPARSEVLM, version=version).counts(num_tokens, 5, 3)
        return PlainSparseVLM((0, 1, 2), tuple(counts), version, 3)

    return plain


def pact(host: Host) -> Plain:
    return PlainPACT(2, 0.55, CUTOFF, 1.5)


Form = tuple[Any, dict[str, Any], Any]  # a method, its budget, and how it is written plainly
FORMS: dict[str, Form] = {
    "dart": (get_method("dart", **DART), {"num_keep": 6}, dart),
    "sparsevlm": (get_method("sparsevlm", **SPARSEVLM), {"num_keep": 5}, sparsevlm(1)),
    "sparsevlm+": (get_method("sparsevlm", **SPARSEVLM, version=2), {"num_keep": 5}, sparsevlm(2)),
    "pact": (get_method("pact", official=True, layer=2, cutoff=CUTOFF), {"keep_ratio": 0.6}, pact),
}
SUBSETS = ("dart", "sparsevlm+")  # the others make rows of several tokens


SERVED = [(host, form) for host in HOSTS for form in FORMS if (host, form) not in NOT_SERVED]


@pytest.fixture(params=SERVED, ids="-".join)
def served(request) -> Any:
    """(host, method, budget, how it is written plainly)"""
    name, form = request.param
    return build(name), *FORMS[form]


def assert_plain(host: Host, method: Any, budget: dict[str, Any], plain: Any) -> None:
    """Prompt and generation, an answer and a second question in the cache: as written plainly."""
    inputs = host.inputs(ROW)
    length = inputs["input_ids"].shape[1]
    with tokenprune.apply(host.model, method, **budget) as handle:
        prompt = logits_of(host, inputs)[0]
        run = generated(host, inputs)
        words = torch.arange(5, 5 + 2 * NEW + ASKED)[None]
        answer, asked, last = words.split([NEW, ASKED, NEW], 1)
        first = said(host, inputs, answer, length)
        again = longer(inputs, torch.cat([answer, asked], 1)) | {CACHE: cache_in(first)}
        second = said(host, again, last, length + NEW + ASKED)
        turns = torch.cat([torch.stack(first.logits, 1), torch.stack(second.logits, 1)], 1)[0]
        assert handle.report().tokens_before == [int((inputs["input_ids"] == IMAGE).sum())]
    said_all = plain_logits(host, inputs, words[0], plain(host))
    shown = len(prompt)
    assert len(said_all) == shown + words.shape[1]
    torch.testing.assert_close(prompt, said_all[:shown], atol=1e-4, rtol=0)
    expected = torch.cat([said_all[shown - 1 :][:NEW], said_all[shown + NEW + ASKED - 1 :][:NEW]])
    torch.testing.assert_close(turns, expected, atol=1e-4, rtol=0)
    greedy = run.sequences[0, length:]
    along = plain_logits(host, inputs, greedy, plain(host))[shown - 1 :]
    assert torch.equal(along[: len(greedy)].argmax(1), greedy)
    torch.testing.assert_close(
        torch.stack(run.logits, 1)[0], along[: len(greedy)], atol=1e-4, rtol=0
    )
    whole = plain_logits(host, inputs, words[0], Plain())[-NEW:]
    assert (whole - said_all[-NEW:]).abs().max() > 1e-3, "the method changes nothing"


def test_as_written_plainly(served):
    assert_plain(*served)


def last_column(tokens: LayerTokens) -> list[torch.Tensor]:
    return [torch.tensor([tokens.length - 1])]


FAULTS = {  # what is declared otherwise
    "dart": (
        {"normed": False},
        {"cuts": lambda num_layers: [Cut(before=2, ranked_in=0)]},
        {"cuts": lambda num_layers: [Cut(before=3, ranked_in=1)]},
    ),
    "sparsevlm": ({"renumbers": False}, {"rating_columns": last_column}),
    "sparsevlm+": ({"renumbers": True}, {"rating_columns": last_column}),
    "pact": (
        {"proportional": False},
        {"renumbers": True},
        {"cuts": lambda num_layers: [Cut(before=2, ranked_in=1)]},
    ),
}


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_a_planted_fault_does_not_pass(name, fault):
    method, budget, plain = FORMS[name]
    method = copy.copy(method)
    method.declare(**fault)
    with pytest.raises(AssertionError, match=r"not close|not equal|\d+ =="):
        assert_plain(build("llava"), method, budget, plain)


def test_a_batch_is_its_rows(served):
    host, method, budget, _ = served
    assert_rows(host, method, ROWS, **budget)


def test_a_cache_changes_nothing(served):
    host, method, budget, _ = served
    assert_no_cache(host, method, **budget)


def removed(host: Host, inputs: Any, method: Any, num_keep: int) -> dict[int, torch.Tensor]:
    """As the handle says: `test_as_written_plainly` proves what is kept."""
    with tokenprune.apply(host.model, method, num_keep=num_keep) as handle:
        logits_of(host, inputs)
        by_layer = handle.outcome().by_layer
    return {number: ~keep for number, keep in enumerate(by_layer) if keep is not None}


@pytest.mark.parametrize("name", SUBSETS)
@pytest.mark.parametrize("host_name", HOSTS)
def test_exactly_the_whole_model_with_columns_masked_away(host_name, name):
    host, (method, budget, _) = build(host_name), FORMS[name]
    assert_exact(host, method, budget["num_keep"], ROW, removed)
    report = tokenprune.verify(host.model, host.inputs(ROWS), method=method, keep_ratio=0.5)
    assert report.ok, report

    def a_layer_late(*args: Any) -> dict[int, torch.Tensor]:
        found = removed(*args)
        return {number: found[number] for number in found if number != min(found)}

    with pytest.raises(AssertionError, match="not close"):
        assert_exact(host, method, budget["num_keep"], ROW, a_layer_late)


@pytest.mark.parametrize(("pair", "why"), NOT_SERVED.items(), ids=str)
def test_hosts_that_have_no_place_for_it(pair, why):
    name, form = pair
    method, budget, _ = FORMS[form]
    with pytest.raises(NotImplementedError, match=why):
        tokenprune.apply(build(name).model, method, **budget)


def test_rows_of_no_single_token_take_the_last_places_of_their_image():
    host, (method, budget, _) = build("llava_next"), FORMS["sparsevlm"]
    inputs = host.inputs(ROW)
    visual = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    with tokenprune.apply(host.model, method, **budget) as handle:
        logits_of(host, inputs)
        report, last, (kept,) = handle.report(), handle.last, handle.kept_positions
        assert handle.retained_count([len(visual)]) == report.tokens_after
    rows = last.rows.shape[1]
    assert report.tokens_after == [rows]
    assert rows > budget["num_keep"], "something is recycled"
    assert last.keep_indices.shape[1] + last.extra.shape[1] == rows
    standing = kept[(kept >= visual[0]) & (kept <= visual[-1])]
    assert len(standing) == rows
    assert standing[-1] == visual[-1]


def test_what_pact_reports():
    host, (method, budget, _) = build("llava"), FORMS["pact"]
    inputs = host.inputs(ROW)
    with tokenprune.apply(host.model, method, **budget) as handle:
        logits_of(host, inputs)
        report, last, (kept,) = handle.report(), handle.last, handle.kept_positions
        with pytest.raises(NotImplementedError, match="PACT keeps depends on the image"):
            handle.retained_count([16])
    sizes = last.counts[0]
    assert report.merged == [int((sizes - 1).sum())]
    assert report.dropped == [16 - int(sizes.sum())]
    assert min(report.merged[0], report.dropped[0]) > 0
    torch.testing.assert_close(last.scores[0], sizes.float().log())
    visual = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    assert set((visual[last.keep_indices[0]]).tolist()) <= set(kept.tolist())
    with pytest.raises(NotImplementedError, match="rows of several tokens in the language model"):
        tokenprune.verify(host.model, inputs, method=method)


def test_prompts_that_the_official_code_does_not_take():
    host = build("llava")
    whole = logits_of(host, host.inputs(ROW))
    for name, (method, budget, _) in FORMS.items():
        with tokenprune.apply(host.model, method, **budget):
            with pytest.raises(NotImplementedError, match="takes one image in a prompt, got 2"):
                logits_of(host, host.inputs([[3, 0, 4, 0, 5]]))
            inputs = host.inputs(ROW)
            begun = {name: inputs[name][:, :4] for name in ("input_ids", "attention_mask")}
            rest = {"input_ids": inputs["input_ids"][:, 4:], "pixel_values": inputs["pixel_values"]}
            cache = cache_in(host.model(**begun, use_cache=True))
            with pytest.raises(NotImplementedError, match="got one that goes on in a cache of 4"):
                logits_of(host, rest | {CACHE: cache})
        with tokenprune.apply(host.model, method, keep_ratio=1.0):
            assert torch.equal(logits_of(host, inputs), whole), name


@pytest.mark.parametrize("version", [1, 2])
def test_the_published_schedules_of_sparsevlm(version):
    """576 tokens of LLaVA-1.5, RETAIN_TOKN = 64, 96, 128 and 192."""
    method = get_method("sparsevlm", official=True, version=version)
    assert method.cuts(32) == [(3, 2), (7, 6), (16, 15)]
    tables = {
        1: [(66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110)],
        2: [(66, 34, 20), (246, 54, 28), (238, 108, 60), (300, 200, 118)],
    }
    for counts in tables[version]:
        assert method.counts(576, counts[-1], 3) == list(counts)
    assert method.counts(576, 576, 3) == [576] * 3
    assert method.counts(30, 1, 3)[-1] == 1
    # 66 and 16 clusters of 154, 30 and 2 of 16, 17 and 1 of 5
    assert method.count(576, 17) == {1: 18, 2: 17}[version]


def test_beams_are_the_same_without_a_cache():
    host = build("llava_next")
    inputs = host.inputs([[3, 0, 4], [8, 0, 5]])
    for method, budget, _ in FORMS.values():
        with tokenprune.apply(host.model, method, **budget):
            beams = generated(host, inputs, num_beams=3)
            without = generated(host, inputs, num_beams=3, use_cache=False)
        assert torch.equal(beams.sequences, without.sequences)


def test_a_draft_in_the_first_step_takes_no_part():
    """Words after the prompt's end, as drafts are, are shown to no method."""
    host = build("llava")
    inputs = host.inputs([[30, 0, 30]])
    ids = inputs["input_ids"]
    ids[0, -20:-10] = ids[0, 1:11] = ids[0, -10:].clone()
    drafts = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1}
    for method, budget, _ in FORMS.values():
        with tokenprune.apply(host.model, method, **budget):
            greedy = generated(host, inputs, max_new_tokens=12)
            guessed = generated(host, inputs, max_new_tokens=12, **drafts)
        assert torch.equal(greedy.sequences, guessed.sequences)


@pytest.mark.parametrize("form", FORMS)
def test_training_with_and_without_checkpoints(form):
    """Gradients arrive; a checkpointed layer runs on what it ran on, or the method is refused."""
    host, (method, budget, _) = deep("llava"), FORMS[form]
    inputs = host.inputs(ROW)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    labels[:, :-3] = -100
    weight = host.model.model.language_model.layers[3].mlp.up_proj.weight
    tower = host.model.model.vision_tower
    host.model.train()
    with tokenprune.apply(host.model, method, **budget) as handle:
        host.model(**inputs, labels=labels).loss.backward()
        kept, expected = handle.kept_positions[0], weight.grad.clone()
        assert any(one.grad is not None and one.grad.any() for one in tower.parameters())
        changed = inputs["input_ids"].clone()
        changed[0, -3:] = 77  # the answer
        host.model(**{**inputs, "input_ids": changed}, labels=labels)
        assert torch.equal(handle.kept_positions[0], kept)
        host.model.zero_grad()
        options = {"use_reentrant": False}
        host.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if method.merges:
            with pytest.raises(NotImplementedError, match="gradient checkpointing would make"):
                host.model(**inputs, labels=labels)
            return
        host.model(**inputs, labels=labels).loss.backward()
    torch.testing.assert_close(weight.grad, expected)


def test_sliding_windows():
    """A subset is exact; rows of several tokens are refused, and raters that do not see."""
    assert_rows(mistral(47), FORMS["dart"][0], ROWS, **FORMS["dart"][1])
    for form, host, message in (
        ("sparsevlm", mistral(4096), "of which sliding windows would see neither"),
        ("pact", mistral(4096), "of which sliding windows would see neither"),
        ("sparsevlm+", mistral(12), "window of 12 does not reach back to the first visual token"),
    ):
        method, budget, _ = FORMS[form]
        with (
            pytest.raises(NotImplementedError, match=message),
            tokenprune.apply(host.model, method, **budget),
        ):
            logits_of(host, host.inputs(ROW))


def test_sizes_in_attention_outlive_the_handle(monkeypatch):
    host, (method, budget, _) = build("llava"), FORMS["pact"]
    inputs, token = host.inputs(ROWS), torch.tensor([[7], [8], [9]])
    with torch.no_grad():
        with tokenprune.apply(host.model, method, **budget):
            cache = cache_in(host.model(**inputs, use_cache=True))
            expected = host.model(input_ids=token, **{CACHE: cache}).logits
            cache.crop(-1)
            again = host.model(input_ids=token, **{CACHE: cache}).logits
        cache.crop(-1)
        without = host.model(input_ids=token, **{CACHE: cache}).logits
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(without, expected, atol=1e-5, rtol=0)
        more = host.inputs([[3, 0], [4, 0], [2, 0]])
        more.pop("attention_mask")
        with (
            tokenprune.apply(host.model, "fastv", num_keep=5),
            pytest.raises(NotImplementedError, match="visual tokens have sizes in attention"),
        ):
            host.model(**more, **{CACHE: cache})
        cache.crop(-1)
        monkeypatch.setattr(Memory, "biases", lambda memory, total, _: torch.zeros(3, total))
        forgotten = host.model(input_ids=token, **{CACHE: cache}).logits
    assert (forgotten - expected).abs().max() > 1e-3, "sizes change nothing"


def test_beside_flash_attention(monkeypatch):
    """Its functions give no weights, and take no sizes."""
    host = deep("llava")
    inputs = host.inputs(ROWS)
    runs = {}
    flash.install(monkeypatch)
    for name in ("sdpa", flash.NAME):
        host.model.set_attn_implementation({"text_config": name})
        for form, (method, budget, _) in FORMS.items():
            with tokenprune.apply(host.model, method, **budget):
                if (name, form) == (flash.NAME, "pact"):
                    with pytest.raises(NotImplementedError, match=f"{name} takes no sizes"):
                        logits_of(host, inputs)
                    continue
                runs[name, form] = torch.stack(generated(host, inputs).logits)
    for form in FORMS.keys() - {"pact"}:
        torch.testing.assert_close(runs[flash.NAME, form], runs["sdpa", form], atol=1e-4, rtol=0)
