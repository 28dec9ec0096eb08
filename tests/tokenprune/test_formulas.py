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


def order_of(values):
    """Places by falling value, the lowest index among equals."""
    return sorted(range(len(values)), key=lambda place: (-values[place], place))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep_cls", [False, True])
def test_prunesid(seed, keep_cls):
    tokens, num_keep = tokens_of(seed)
    budget = num_keep + keep_cls
    features, attention = tokens.features[0], tokens.attention[0].tolist()
    num_groups = max(1, budget // 4)
    spread = features.sigmoid() - features.sigmoid().mean(1, keepdim=True)
    # Of D x N with centered columns, as the paper has it: no matrix of tokens by tokens.
    components = torch.linalg.svd(spread.T)[2].abs()
    groups = [
        max(range(num_groups), key=lambda c: components[c, token].item())
        for token in range(NUM_TOKENS)
    ]
    likeness = cosines(features, features).tolist()
    pairs = list(itertools.combinations(range(NUM_TOKENS), 2))
    threshold = budget / 32 * sum(likeness[i][j] for i, j in pairs) / len(pairs)

    rankings, survivors = [], []
    for group in range(num_groups):
        members = [token for token in order_of(attention) if groups[token] == group]
        first: list[int] = []
        for token in members:
            if all(likeness[token][other] <= threshold for other in first):
                first.append(token)
        survivors.append(len(first))
        rankings.append(first + [token for token in members if token not in first])

    sizes = [len(ranking) for ranking in rankings]
    least = [min(1, size) for size in sizes]
    most = [min(count, 5 * math.ceil(budget / 64)) for count in survivors]
    while sum(most) < min(budget, NUM_TOKENS):
        most = [min(bound + 1, size) for bound, size in zip(most, sizes, strict=True)]
    free, total = num_keep - sum(least), sum(survivors)
    ends = [round(free * sum(survivors[:end]) / total) for end in range(num_groups + 1)]
    quotas = [min(most[c], least[c] + ends[c + 1] - ends[c]) for c in range(num_groups)]
    for group in order_of(survivors):
        quotas[group] += min(most[group] - quotas[group], num_keep - sum(quotas))
    expected = [token for c in range(num_groups) for token in rankings[c][: quotas[c]]]
    result = get_method("prunesid", keep_cls=keep_cls).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(expected)
    assert (result.extra is not None) is keep_cls
    if keep_cls:
        assert torch.equal(result.rows[:, -1], tokens.cls)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("merging", ["mean", "sum"])
@pytest.mark.parametrize("radius", [280**0.5, 2.5])
def test_nuwa(seed, merging, radius):
    layers = (-3, -2, -1)
    tokens, num_keep = tokens_of(seed)
    tokens = replace(
        tokens,
        hidden_states=example_tokens(
            1, GRID, 8, dtype=torch.float64, seed=seed, hidden_layers=layers
        ).hidden_states,
    )
    attention = tokens.attention[0].tolist()
    regions: dict[tuple[int, int], list[int]] = {}
    for token in order_of(attention):
        regions.setdefault((token // GRID[1] // 2, token % GRID[1] // 2), []).append(token)
    for depth in range(1, 5):
        candidates = [token for region in regions.values() for token in region[:depth]]
        if len(candidates) >= num_keep:
            break
    anchors = sorted(sorted(candidates, key=lambda token: -attention[token])[:num_keep])
    states = torch.stack([tokens.hidden_states[layer][0] for layer in layers]).mean(0)
    likeness = cosines(states, states).tolist()
    ascending = sorted(attention[anchor] for anchor in anchors)
    place = 0.55 * (num_keep - 1)
    low, high = ascending[math.floor(place)], ascending[math.ceil(place)]
    from_here = low + (high - low) * (place - math.floor(place))

    result = get_method("nuwa", merging=merging, radius=radius, layers=layers).reduce(
        tokens, num_keep
    )
    assert result.keep_indices[0].tolist() == anchors
    for slot, anchor in enumerate(anchors):
        weights = [0.0] * NUM_TOKENS
        if attention[anchor] < from_here - 1e-12:
            for other in range(NUM_TOKENS):
                apart = math.dist(divmod(anchor, GRID[1]), divmod(other, GRID[1]))
                weights[other] = max(0.0, likeness[anchor][other]) * max(0.0, 1 - apart / radius)
        weights[anchor] = 1.0
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        if merging == "sum":
            shares[anchor] = 1.0
        torch.testing.assert_close(result.features[0, slot], shares @ tokens.features[0])


@pytest.mark.parametrize("grid_size", [(24, 24), (12, 16)])
def test_nuwa_takes_so_many_of_each_region_as_the_paper(grid_size):
    """112, 224 and 336 of 576 tokens are the best one, two and three of each region."""
    tokens = example_tokens(1, grid_size, 8, hidden_layers=range(-9, 0))
    num_tokens = grid_size[0] * grid_size[1]
    cells = torch.arange(num_tokens)
    region = cells // grid_size[1] // 2 * grid_size[1] + cells % grid_size[1] // 2
    for depth in (1, 2, 3):
        kept = get_method("nuwa").reduce(tokens, num_tokens * 112 * depth // 576).keep_indices[0]
        assert region[kept].bincount().max() == depth


@pytest.mark.parametrize("seed", SEEDS)
def test_visionselector(seed):
    tokens, num_keep = tokens_of(seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q_weight": (5, 8), "q_bias": (5,), "k_weight": (5, 8), "k_bias": (5,)}
    weights = {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in shapes.items()
    }
    features = tokens.features[0]
    queries = features @ weights["q_weight"].T + weights["q_bias"]
    keys = features @ weights["k_weight"].T + weights["k_bias"]
    scores = [
        sum(float(query @ key) for key in keys) / NUM_TOKENS / math.sqrt(5) for query in queries
    ]
    result = get_method("visionselector", **weights).reduce(tokens, num_keep)
    assert result.keep_indices[0].tolist() == sorted(order_of(scores)[:num_keep])
    expected = torch.tensor([scores[token] for token in result.keep_indices[0]])
    torch.testing.assert_close(result.scores[0], expected)
