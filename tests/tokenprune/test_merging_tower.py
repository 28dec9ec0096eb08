"""ToMe inside the tower's layers: a model says what it says with rows that are merged by hand."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import tokenprune
from tokenprune import get_method
from tokenprune.hosts.merging_tower import Merging
from tokenprune.hosts.tower_of_host import tower_layers

from .families.proof import ASKED, BATCH, NEW, ONE, two_turns, words_of_two_turns
from .hosts import HOSTS, IMAGE, TEXT, TOWER, Host, fixed
from .test_apply import logits_of, traces

DEEP = {"num_hidden_layers": 5, "image_size": 84}  # four layers of 36 patches merge
KEEP = 14  # 22 of 36 merge: 6, 6, 5 and 5


def of_siglip() -> Host:
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER | DEEP, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
    )
    return fixed(hf.LlavaForConditionalGeneration(config), 84)


def of_clip() -> Host:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER | DEEP, projection_dim=32),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )
    return fixed(hf.LlavaForConditionalGeneration(config), 84)


BUILD = {"clip": of_clip, "siglip": of_siglip}


def made(name: str) -> Host:
    torch.manual_seed(0)
    host = BUILD[name]()
    with torch.no_grad():  # attention that is far from even, so that sizes matter
        for layer in tower_layers(host.model.model.vision_tower):
            layer.self_attn.q_proj.weight.mul_(8)
            layer.self_attn.k_proj.weight.mul_(8)
    return host


build = functools.cache(made)


def official() -> Any:
    return get_method("tome", official=True)


# -- the paper, plainly ----------------------------------------------------------------------------


def merged_by_hand(
    tokens: list[tuple[Tensor, float, list[int]]], metric: Tensor, count: int, has_class: bool
) -> list[tuple[Tensor, float, list[int]]]:
    """A round on one crop; each token is (state, size, which patches, the last one its place)."""
    directions = functional.normalize(metric, dim=1)
    sources, targets = range(0, len(tokens), 2), range(1, len(tokens), 2)
    edges = []
    for source in sources:
        similar = directions[list(targets)] @ directions[source]
        best = int(similar.argmax())
        protected = has_class and source == 0
        edges.append((-torch.inf if protected else float(similar[best]), source, best))
    edges.sort(key=lambda edge: -edge[0])
    merging, left = edges[:count], edges[count:]
    if has_class:
        left.sort(key=lambda edge: edge[1])
    into = [tokens[target] for target in targets]
    sums = [state * size for state, size, _ in into]
    sizes = [size for _, size, _ in into]
    members = [list(of) for _, _, of in into]
    for _, source, best in merging:
        state, size, of = tokens[source]
        sums[best], sizes[best] = sums[best] + state * size, sizes[best] + size
        members[best] = [*of, *members[best]]
    merged = [(s / n, n, of) for s, n, of in zip(sums, sizes, members, strict=True)]
    return [*(tokens[source] for _, source, _ in left), *merged]


def tower_by_hand(host: Host, pixels: Tensor) -> list[tuple[Tensor, list[int]]]:
    """For each image [K, D] projected rows, and the patches in whose places they lie."""
    tower, projector = host.model.model.vision_tower, host.model.model.multi_modal_projector
    layers = tower_layers(tower)
    first: list[Tensor] = []
    hook = layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: first.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        tower(pixels)
    hook.remove()
    has_class = host.model.config.vision_config.model_type.startswith("clip")
    images = []
    for crop in first[0]:
        tokens = [(state, 1.0, [place]) for place, state in enumerate(crop)]
        for layer, count in zip(layers, (6, 6, 5, 5), strict=False):
            attention = layer.self_attn
            states = torch.stack([state for state, _, _ in tokens])
            sizes = torch.tensor([size for _, size, _ in tokens])
            normed = layer.layer_norm1(states)
            query, key, value = (
                getattr(attention, name)(normed).unflatten(1, (4, 8)).transpose(0, 1)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            weights = (query @ key.mT * 8**-0.5 + sizes.log()).softmax(-1)
            states = states + attention.out_proj((weights @ value).transpose(0, 1).flatten(1))
            tokens = [(state, *rest) for state, (_, *rest) in zip(states, tokens, strict=True)]
            tokens = merged_by_hand(tokens, key.mean(0), count, has_class)
            states = torch.stack([state for state, _, _ in tokens])
            states = states + layer.mlp(layer.layer_norm2(states))
            tokens = [(state, *rest) for state, (_, *rest) in zip(states, tokens, strict=True)]
        rows = sorted(tokens[has_class:], key=lambda token: token[2][-1])
        projected = projector(torch.stack([state for state, _, _ in rows]))
        images.append((projected, [of[-1] - has_class for _, _, of in rows]))
    return images


def sequences_by_hand(host: Host, inputs: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each row [L', D] of embeddings with merged rows, their positions, and their columns."""
    with torch.no_grad():
        images = iter(tower_by_hand(host, inputs["pixel_values"]))
    sequences = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        embeddings = host.model.get_input_embeddings()(ids).detach().clone()
        stays = mask.bool() & (ids != IMAGE)
        for start in (ids == IMAGE).nonzero()[::36, 0].tolist():
            made_rows, places = next(images)
            embeddings[[start + place for place in places]] = made_rows
            stays[[start + place for place in places]] = True
        columns = stays.nonzero()[:, 0]
        sequences.append((embeddings[columns], columns - int(mask.argmax()), columns))
    return sequences


def assert_as_by_hand(host: Host, rows: list[list[int]]) -> None:
    """Prefill and greedy ids, beside the language model on the rows in their places."""
    inputs = host.inputs(rows)
    with tokenprune.apply(host.model, official(), num_keep=KEEP) as handle:
        logits = logits_of(host, inputs)
        kept = handle.kept_positions
        answers = host.model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
    for row, (sequence, positions, columns) in enumerate(sequences_by_hand(host, inputs)):
        assert torch.equal(kept[row], columns)
        expected = say(host, sequence, positions)
        assert_close(logits[row, -len(columns) :], expected, atol=1e-4, rtol=0)
        for token in answers[row]:
            assert int(say(host, sequence, positions)[-1].argmax()) == token
            word = host.model.get_input_embeddings()(token[None])
            sequence = torch.cat([sequence, word])
            positions = torch.cat([positions, positions[-1:] + 1])


def say(host: Host, embeddings: Tensor, positions: Tensor) -> Tensor:
    """[L, D] -> [L, V]."""
    ones = torch.ones(1, len(embeddings), dtype=torch.int64)  # gaps are no packed sequences
    with torch.no_grad():
        states = host.model.model.language_model(
            inputs_embeds=embeddings[None], position_ids=positions[None], attention_mask=ones
        )
        return host.model.lm_head(states.last_hidden_state)[0]


@pytest.mark.parametrize("rows", [ONE, BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("name", BUILD)
def test_a_model_says_what_it_says_with_rows_merged_by_hand(name, rows):
    assert_as_by_hand(build(name), rows)


@pytest.mark.parametrize("name", BUILD)
def test_it_is_the_masked_model_with_the_rows(name):
    report = tokenprune.verify(build(name).model, build(name).inputs(ONE), method=official())
    assert report.ok, report


@pytest.mark.parametrize("name", BUILD)
def test_a_second_turn_goes_on_from_rows_merged_by_hand(name):
    host = build(name)
    inputs = host.inputs(BATCH)
    with tokenprune.apply(host.model, official(), num_keep=KEEP):
        logits = two_turns(host, inputs)
    words = words_of_two_turns(len(BATCH))
    for row, (sequence, positions, _) in enumerate(sequences_by_hand(host, inputs)):
        said = host.model.get_input_embeddings()(words[row])
        after = positions[-1] + 1 + torch.arange(len(said))
        expected = say(host, torch.cat([sequence, said]), torch.cat([positions, after]))
        expected = expected[len(sequence) - 1 :]
        asked = torch.cat([expected[:NEW], expected[NEW + ASKED : 2 * NEW + ASKED]])
        assert_close(logits[row], asked, atol=1e-4, rtol=0)


class WithoutSizes(Merging):
    def run(self, number: int, layer: Any, states: Tensor) -> Tensor:
        self._sizes = None
        return super().run(number, layer, states)


@pytest.mark.parametrize("name", BUILD)
def test_planted_faults_are_noticed(name, monkeypatch):
    host = build(name)
    monkeypatch.setattr("tokenprune.hosts.tower.Merging", WithoutSizes)
    with pytest.raises(AssertionError):
        assert_as_by_hand(host, ONE)
    monkeypatch.setattr("tokenprune.hosts.tower.Merging", Merging)
    monkeypatch.setattr(Merging, "counts", lambda self, num_patches: [5, 5, 6, 6])
    with pytest.raises(AssertionError):
        assert_as_by_hand(host, ONE)


# -- the tower runs on fewer tokens ----------------------------------------------------------------


def test_layers_run_on_fewer_tokens_and_the_class_token_is_there():
    host = build("clip")
    inputs = host.inputs(ONE)
    lengths: list[int] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda m, args: lengths.append(args[0].shape[1]))
        for layer in tower_layers(host.model.model.vision_tower)
    ]
    with tokenprune.apply(host.model, official(), num_keep=KEEP):
        logits_of(host, inputs)
    for hook in hooks:
        hook.remove()
    assert lengths == [31, 25, 20, 15, 37]  # the last layer's output is not used


def test_report_and_count():
    host = build("clip")
    inputs = host.inputs(BATCH)
    with tokenprune.apply(host.model, official(), num_keep=KEEP) as handle:
        logits_of(host, inputs)
        report, last = handle.report(), handle.last
        assert handle.retained_count(host.sizes(inputs)) == report.tokens_after
    assert report.tokens_after == [KEEP] * 3
    assert report.merged == [36 - KEEP] * 3
    assert report.dropped == [0] * 3
    assert torch.equal(last.scores.exp().sum(1), torch.full((3,), 36.0))
    assert_close(last.scores.exp(), last.counts.float())


def test_all_is_kept_to_the_bit_and_nothing_is_left_behind():
    host = made("clip")
    inputs = host.inputs(ONE)
    plain, before = logits_of(host, inputs), traces(host.model)
    with tokenprune.apply(host.model, official(), keep_ratio=1.0):
        assert torch.equal(logits_of(host, inputs), plain)
    with tokenprune.apply(host.model, official(), num_keep=KEEP):
        short = logits_of(host, inputs)
        with tokenprune.apply(host.model, "fastervlm", num_keep=KEEP):
            assert not torch.equal(logits_of(host, inputs), short)
        assert torch.equal(logits_of(host, inputs), short)
    assert traces(host.model) == before
    assert torch.equal(logits_of(host, inputs), plain)


def test_threads_merge_each_their_own():
    host = build("clip")
    prompts = [host.inputs([[3, 0, 4]], seed=seed) for seed in range(3)]
    with tokenprune.apply(host.model, official(), num_keep=KEEP):
        alone = [logits_of(host, inputs) for inputs in prompts]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda inputs: logits_of(host, inputs), prompts * 3))
    for number, logits in enumerate(together):
        assert_close(logits, alone[number % 3], atol=1e-5, rtol=0)


def test_rounds_are_those_recorded_from_the_official_code(golden):
    """Rows, sizes and where each token is, in the official order, round after round."""
    found = 0
    for path in sorted((golden / "methods").glob("tome_*.safetensors")):
        given = load_file(path)
        protected = int("cls" in path.stem)
        merging = Merging(1, 1, protected)
        states = given["in.features"][None]
        everyone = torch.arange(states.shape[1])[None]
        merging._row_of = merging._root_of = everyone
        for turn in range(sum(name.startswith("in.metric") for name in given)):
            count = states.shape[1] - given[f"out.tokens{turn}"].shape[0]
            states = merging._merge(states, given[f"in.metric{turn}"][None], count)
            assert_close(states[0], given[f"out.tokens{turn}"], atol=1e-4, rtol=1e-4)
            assert_close(merging._sizes[0], given[f"out.sizes{turn}"].flatten())
            assert torch.equal(merging._row_of[0], given[f"out.assignment{turn}"])
            found += 1
    assert found >= 6


# -- refused ---------------------------------------------------------------------------------------


def test_hosts_and_layers_that_cannot_are_refused_by_name():
    for name in ("llava_next", "qwen2_5_vl", "paligemma"):
        torch.manual_seed(0)
        with pytest.raises(NotImplementedError, match="ToMe needs roots"):
            tokenprune.apply(HOSTS[name]().model, official(), num_keep=3)
    host = made("clip")
    layer = tower_layers(host.model.model.vision_tower)[1]
    layer.adapter = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match="is no layer that tokens can merge in"):
        tokenprune.apply(host.model, official(), num_keep=KEEP)
    del layer.adapter
    layer.forward = layer.forward
    before = traces(host.model)
    with pytest.raises(NotImplementedError, match="a forward of its own, as offloading gives it"):
        tokenprune.apply(host.model, official(), num_keep=KEEP)
    assert traces(host.model) == before
    with pytest.raises(NotImplementedError, match="ToMe merges inside the vision tower, Chain"):
        tokenprune.Chain(official(), get_method("random"), budgets=[20])


def test_no_layer_merges_more_than_half():
    host = build("clip")
    with (
        tokenprune.apply(host.model, official(), num_keep=1),
        pytest.raises(ValueError, match="36 cannot become 1 in 4 layers, layer 3 has 9 left"),
    ):
        logits_of(host, host.inputs(ONE))


def test_tokens_that_have_not_merged_are_refused():
    tokens = tokenprune.VisionTokens(torch.randn(1, 4, 8), (2, 2))
    with pytest.raises(ValueError, match=r"ToMe needs VisionTokens\.roots"):
        official().reduce(tokens, 2)
    roots = torch.tensor([[0, 0, 2, 3]])
    tokens = tokenprune.VisionTokens(torch.randn(1, 4, 8), (2, 2), roots=roots)
    with pytest.raises(ValueError, match=r"ToMe must leave 2 tokens, \[3\] were left"):
        official().reduce(tokens, 2)
