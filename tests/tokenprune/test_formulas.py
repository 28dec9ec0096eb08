"""Methods against plain loops over their formulas, in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tokenprune import VisionTokens, get_method
from tokenprune.testing import example_tokens

SEEDS = range(20)
GRID, NUM_TOKENS = (6, 5), 30


def tokens_of(seed):
    """One crop in float64, and a budget."""
    tokens = example_tokens(1, GRID, 8, dtype=torch.float64, seed=seed)
    return replace(tokens, attention=tokens.attention.double()), 1 + 7 * seed % 29


def cosines(left, right):
    return functional.normalize(left, dim=-1) @ functional.normalize(right, dim=-1).T


def by_attention(tokens, count):
    """The tokens of highest attention, best first."""
    attention = tokens.attention[0].tolist()
    return sorted(range(NUM_TOKENS), key=lambda token: -attention[token])[:count]


@pytest.mark.parametrize("seed", SEEDS)
def test_fastervlm(seed):
    tokens, num_keep = tokens_of(seed)
    result = get_method("fastervlm").reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(by_attention(tokens, num_keep))


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform(seed):
    tokens, num_keep = tokens_of(seed)
    result = get_method("uniform").reduce(tokens, num_keep)
    expected = [math.floor((place + 0.5) * NUM_TOKENS / num_keep) for place in range(num_keep)]
    assert result.keep_indices[0].tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options", [{}, {"step": 1, "important_ratio": 0.2}, {"compared": "features"}]
)
def test_vispruner(seed, options):
    tokens, num_keep = tokens_of(seed)
    ranking = by_attention(tokens, NUM_TOKENS)
    num_important = int(num_keep * options.get("important_ratio", 0.5))
    rest, num_distinct = ranking[num_important:], num_keep - num_important
    while len(rest) > num_distinct > 0:
        first, second = rest[::2], rest[1::2]
        states = tokens.hidden_states[-2][0]
        if options.get("compared") == "features":
            states = tokens.features[0]
        likeness = cosines(states[first], states[second]).amax(1).tolist()
        drop = min(options.get("step", 8), len(rest) - num_distinct, len(first))
        order = sorted(range(len(first)), key=lambda place: -likeness[place])
        rest = [first[place] for place in order[drop:]] + second
    expected = sorted(ranking[:num_important] + rest[:num_distinct])
    result = get_method("vispruner", **options).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"alpha": 0.4}, {"alpha": 1.5, "compared": "features"}])
def test_scope(seed, options):
    tokens, num_keep = tokens_of(seed)
    states = tokens.features if "compared" in options else tokens.hidden_states[-2]
    likeness = cosines(states[0], states[0]).tolist()
    weight = [value ** options.get("alpha", 1.0) for value in tokens.attention[0].tolist()]
    kept, covered = [], [0.0] * NUM_TOKENS
    for _ in range(num_keep):
        gains = [
            -1.0
            if token in kept
            else weight[token]
            * sum(max(0.0, likeness[other][token] - covered[other]) for other in range(NUM_TOKENS))
            for token in range(NUM_TOKENS)
        ]
        kept.append(gains.index(max(gains)))
        covered = [max(covered[other], likeness[other][kept[-1]]) for other in range(NUM_TOKENS)]
    result = get_method("scope", **options).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(kept)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"mmr_lambda": 0.2, "parallel_k": 3}])
def test_idpruner(seed, options):
    tokens, num_keep = tokens_of(seed)
    weight, parallel = options.get("mmr_lambda", 0.5), options.get("parallel_k", 1)
    likeness = cosines(tokens.features[0], tokens.features[0]).tolist()
    attention = tokens.attention[0].tolist()
    span = max(attention) - min(attention) + 1e-6
    importance = [(value - min(attention)) / span for value in attention]
    kept = sorted(range(NUM_TOKENS), key=lambda token: -importance[token])[:parallel]
    while len(kept) < num_keep:
        left = [token for token in range(NUM_TOKENS) if token not in kept]
        value = {
            token: weight * importance[token]
            - (1 - weight) * max(likeness[token][other] for other in kept)
            for token in left
        }
        kept += sorted(left, key=lambda token, value=value: -value[token])[:parallel]
    result = get_method("idpruner", **options).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(kept[:num_keep])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("official", [False, True])
def test_hiprune(seed, alpha, official):
    tokens, num_keep = tokens_of(seed)
    objects, deep = (tokens.received[layer][0].tolist() for layer in (8, -2))
    anchors = sorted(range(NUM_TOKENS), key=lambda token: -objects[token])
    anchors = anchors[: round(num_keep * alpha / 5)]
    around = {anchor + step for anchor in anchors for step in (0, -1, 1, -GRID[1], GRID[1])}
    first = {min(max(token, 0), NUM_TOKENS - 1) for token in around}
    if official:
        left = sorted(range(NUM_TOKENS), key=lambda token: -deep[token] + (token in first))
    else:
        first = set(sorted(first, key=lambda token: -objects[token])[:num_keep])
        left = sorted({*range(NUM_TOKENS)} - first, key=lambda token: -deep[token])
    expected = first | {*left[: max(num_keep - len(first), 0)]}
    result = get_method("hiprune", alpha=alpha, official=official).reduce(tokens, num_keep)
    assert result.keep_indices.flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ratio", [0.0, 10 / 64, 0.5])
def test_visionzip(seed, ratio):
    tokens, num_keep = tokens_of(seed)
    contextual = min(math.floor(num_keep * ratio + 0.5), num_keep - 1)
    dominant = by_attention(tokens, num_keep - contextual)
    rest = [token for token in range(NUM_TOKENS) if token not in dominant]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    members = {token: [token] for token in dominant + targets}
    for token in rest if contextual else []:
        if token not in targets:
            likeness = cosines(tokens.features[0, [token]], tokens.features[0, targets])[0]
            members[targets[int(likeness.argmax())]].append(token)
    result = get_method("visionzip", contextual_ratio=ratio).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(members)
    for slot, root in enumerate(sorted(members)):
        expected = tokens.features[0, members[root]].mean(0)
        torch.testing.assert_close(result.features[0, slot], expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_prumerge(seed):
    tokens, num_keep = tokens_of(seed)
    kept = sorted(by_attention(tokens, num_keep))
    nearest = cosines(tokens.features[0], tokens.features[0, kept]).argmax(1).tolist()
    result = get_method("prumerge").reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == kept
    for slot, root in enumerate(kept):
        members = [token for token in range(NUM_TOKENS) if kept[nearest[token]] == root]
        weights = tokens.attention[0, members]
        expected = (weights[:, None] * tokens.features[0, members]).sum(0) / weights.sum()
        torch.testing.assert_close(result.features[0, slot], expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_pivots", [1, 3, 8])
def test_dart(seed, num_pivots):
    tokens, num_keep = tokens_of(seed)
    norms = tokens.features[0].abs().sum(1).tolist()
    count = min(num_pivots, num_keep)
    pivots = sorted(sorted(range(NUM_TOKENS), key=lambda token: -norms[token])[:count])
    kept, left = list(pivots), num_keep - count
    for place, pivot in enumerate(pivots):
        likeness = cosines(tokens.features[0, [pivot]], tokens.features[0])[0].tolist()
        free = [token for token in range(NUM_TOKENS) if token not in kept]
        share = left * (place + 1) // count - left * place // count
        kept += sorted(free, key=lambda token: likeness[token])[:share]
    result = get_method("dart", num_pivots=num_pivots).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(kept)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("text", ["embeddings", "joint"])
def test_cdpruner(seed, text):
    tokens, _ = tokens_of(seed)
    num_keep = 1 + seed % 7  # within the rank of eight channels
    relevance = cosines(tokens.features[0], tokens.text[0]).mean(1)
    if text == "joint":
        relevance = -cosines(tokens.image_embeds[0], tokens.text_embeds[0]).mean(1)
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min()) + 1e-6
    relevance = relevance.clamp(max=1)
    kernel = relevance[:, None] * cosines(tokens.features[0], tokens.features[0]) * relevance
    kept = []
    for _ in range(num_keep):
        determinants = [
            -1.0 if token in kept else float(kernel[[*kept, token]][:, [*kept, token]].det())
            for token in range(NUM_TOKENS)
        ]
        kept.append(determinants.index(max(determinants)))
    result = get_method("cdpruner", text=text).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparsevlm(seed):
    tokens, num_keep = tokens_of(seed)
    logits = tokens.features[0] @ tokens.text[0].T / math.sqrt(8)  # [N, T]
    relevance = logits.softmax(1).mean(0).tolist()
    average = sum(relevance) / len(relevance)
    raters = [word for word, value in enumerate(relevance) if value >= average]
    assert 0 < len(raters) < 4
    scores = sum(logits[:, word].softmax(0) for word in raters).tolist()
    result = get_method("sparsevlm").reduce(tokens, num_keep)
    expected = sorted(range(NUM_TOKENS), key=lambda token: -scores[token])[:num_keep]
    assert result.keep_indices[0].tolist() == sorted(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{}, {"num_windows": 4}, {"num_windows": None}])
@pytest.mark.parametrize("official", [False, True])
def test_holov(seed, options, official):
    tokens, num_keep = tokens_of(seed)
    attention = tokens.attention[0].tolist()
    count = options.get("num_windows", 16) or max(1, int(1024 / 576 * NUM_TOKENS / num_keep))
    sizes = [NUM_TOKENS // count + (run < NUM_TOKENS % count) for run in range(count)]
    ends = list(itertools.accumulate(sizes))
    runs = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True) if size]
    scores = []
    for run in runs:
        likeness = cosines(tokens.features[0, run], tokens.features[0, run]).fill_diagonal_(0)
        variance = []
        for row in likeness.tolist():
            mean = sum(row) / max(len(run) - 1, 1)
            variance.append(sum((value - mean) ** 2 for value in row) / max(len(run) - 1, 1))
        scale = 1000 * sum(attention[token] for token in run) / (sum(variance) + len(run) * 1e-6)
        values = [
            1000 * attention[token] + 0.09 * scale * spread
            for token, spread in zip(run, variance, strict=True)
        ]
        scores.append(sum(values) / len(run))
    shares = [score / (sum(scores) + 1e-6) for score in scores]
    quotas = [math.floor(share * num_keep) for share in shares]
    largest = sorted(range(len(runs)), key=lambda run: -shares[run])
    for run in largest[: num_keep - sum(quotas)]:
        quotas[run] += 1
    surplus = sum(max(quota - len(run), 0) for quota, run in zip(quotas, runs, strict=True))
    full = [[*run] for run in runs]
    while surplus and not official:
        for run in largest:
            if surplus and quotas[run] < len(full[run]):
                quotas[run] += 1
                surplus -= 1
        quotas = [min(quota, len(run)) for quota, run in zip(quotas, full, strict=True)]
    kept = []
    for run, quota in zip(runs, quotas, strict=True):
        kept += sorted(run, key=lambda token: -attention[token])[:quota]
    result = get_method("holov", official=official, **options).reduce(tokens, num_keep)
    assert result.keep_indices[0, result.valid[0]].tolist() == sorted(kept)
    assert int((~result.valid).sum()) == num_keep - len(kept)


@pytest.mark.parametrize("seed", SEEDS)
def test_downsample(seed):
    tokens, _ = tokens_of(seed)
    grid = tokens.features.mT.unflatten(2, GRID)
    for num_keep, size in ((6, (3, 2)), (12, (4, 3)), (30, GRID)):
        expected = functional.interpolate(grid, size, mode="bilinear", antialias=True)
        result = get_method("downsample").reduce(tokens, num_keep)
        torch.testing.assert_close(result.features, expected.flatten(2).mT)
    ramp = torch.arange(NUM_TOKENS, dtype=torch.float64).view(1, NUM_TOKENS, 1) + 1
    for num_keep in (1 + seed, 11 + seed):  # rows of unequal length keep to their places
        result = get_method("downsample").reduce(VisionTokens(ramp, GRID), num_keep)
        assert (result.features[0, :, 0].diff() > 0).all()
