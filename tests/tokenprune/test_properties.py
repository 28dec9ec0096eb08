"""What holds for every input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import ReducedTokens, ops

from .cases import DTYPES, anchor_of, assert_same, fields, head_of, make_inputs


@st.composite
def arguments(draw, dtypes=DTYPES):
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return make_inputs(
        batch=draw(st.integers(0, 4)),
        grid_size=(rows, cols),
        width=draw(st.integers(1, 40)),
        num_keep=draw(st.integers(1, rows * cols)),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 2**20)),
        sharp=draw(st.sampled_from([0.1, 1.0, 10.0])),
    )


@given(arguments(), st.sampled_from(["official", "merge"]))
def test_result(inputs, cycles):
    features = inputs["features"]
    batch, num_tokens, width = features.shape
    num_keep = inputs["num_keep"]
    result = ops.background_anchored(**inputs, cycles=cycles)

    assert result.features.shape == (batch, num_keep, width)
    assert result.features.dtype == features.dtype
    assert result.keep_indices.shape == result.valid.shape == (batch, num_keep)
    assert result.scores.shape == (batch, num_keep)
    assert result.assignment.shape == (batch, num_tokens)
    assert result.keep_indices.dtype == result.assignment.dtype == torch.int64
    assert result.valid.dtype == torch.bool
    assert result.scores.dtype == torch.float32
    assert result.grid_size == inputs["grid_size"]
    assert (result.keep_indices.diff(dim=1) > 0).all()  # ascending and unique
    for indices in (result.keep_indices, result.assignment):
        assert ((indices >= 0) & (indices < num_tokens)).all()

    tolerance = 4 * torch.finfo(features.dtype).eps
    for crop in range(batch):
        clusters = set(result.assignment[crop].tolist())
        assert result.valid[crop].sum() == min(num_keep, len(clusters))
        for slot, root in enumerate(result.keep_indices[crop].tolist()):
            members = features[crop][result.assignment[crop] == root].double()
            assert result.valid[crop, slot] == (len(members) > 0)
            assert result.counts[crop, slot] == len(members)
            if len(members):
                mean = members.mean(0)
                error = (result.features[crop, slot].double() - mean).abs().max()
                assert error <= tolerance * members.abs().max()
            else:
                assert (result.features[crop, slot] == 0).all()
                assert result.scores[crop, slot] == -math.inf


@given(arguments())
def test_the_best_are_kept(inputs):
    result = ops.background_anchored(**inputs)
    everything = ops.anchored_select(
        inputs["features"],
        inputs["cls"],
        result.assignment,
        *anchor_of(inputs),
        inputs["features"].shape[1],
    )
    for crop in range(len(result.features)):
        kept = set(result.keep_indices[crop][result.valid[crop]].tolist())
        scores = dict(enumerate(everything.scores[crop].tolist()))
        left_out = [scores[root] for root in scores if root not in kept]
        if kept and left_out:
            assert min(scores[root] for root in kept) >= max(left_out) - 1e-4


@given(arguments(), st.integers(0, 2**20))
def test_same_again_and_for_every_order_of_crops(inputs, seed):
    first = ops.background_anchored(**inputs)
    again = ops.background_anchored(**inputs)
    order = torch.randperm(len(first.features), generator=torch.Generator().manual_seed(seed))
    shuffled = inputs | {"features": inputs["features"][order], "cls": inputs["cls"][order]}
    permuted = ops.background_anchored(**shuffled)
    for name, value in fields(first).items():
        assert torch.equal(value, fields(again)[name]), name
    assert_same(ReducedTokens(**{n: v[order] for n, v in fields(first).items()}), permuted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_batch_is_its_crops_one_by_one(dtype):
    inputs = make_inputs(53, (5, 4), 16, 6, dtype=dtype)  # more than are in work at a time
    features = inputs["features"].clone().requires_grad_()
    whole = ops.background_anchored(**(inputs | {"features": features}))
    whole.features.square().sum().backward()
    for crop in range(53):
        one = features.detach()[crop : crop + 1].clone().requires_grad_()
        alone = ops.background_anchored(
            **(inputs | {"features": one, "cls": inputs["cls"][crop : crop + 1]})
        )
        alone.features.square().sum().backward()
        part = {name: value[crop : crop + 1] for name, value in fields(whole).items()}
        assert_same(ReducedTokens(**part), alone)
        torch.testing.assert_close(features.grad[crop : crop + 1], one.grad)


@given(arguments())
def test_strided_input_needs_no_copy_to_be_right(inputs):
    expected = ops.background_anchored(**inputs)
    for strided in (inputs["features"].contiguous(), inputs["features"].mT.contiguous().mT):
        assert_same(ops.background_anchored(**(inputs | {"features": strided})), expected)


def plain_parents(logits, grid_size):
    """The strongest neighbor, cell by cell, in float64."""
    rows, cols = grid_size
    parents = []
    for cell, weights in enumerate(logits.double().softmax(-1).tolist()):
        y, x = divmod(cell, cols)
        votes: dict[int, float] = {}
        for slot, weight in enumerate(weights):
            dy, dx = divmod(slot, 3)
            row, col = min(max(y + dy - 1, 0), rows - 1), min(max(x + dx - 1, 0), cols - 1)
            votes[row * cols + col] = votes.get(row * cols + col, 0.0) + weight
        best = max(votes.values())
        parents.append(min(target for target, vote in votes.items() if vote >= best - 1e-6))
    return parents


def cycle_root(parents, cell):
    """The lowest cell of the cycle that a path runs into."""
    for _ in parents:
        cell = parents[cell]
    cycle = {cell}
    while parents[cell] not in cycle:
        cell = parents[cell]
        cycle.add(cell)
    return min(cycle)


def components(parents):
    """Union-find: for each cell a name for all that hangs together with it."""
    names = list(range(len(parents)))

    def find(cell):
        while names[cell] != cell:
            cell = names[cell]
        return cell

    for cell, parent in enumerate(parents):
        names[find(cell)] = find(parent)
    return [find(cell) for cell in range(len(parents))]


@st.composite
def any_logits(draw):
    """Logits from features, or for pointers drawn at random, which form cycles of every length."""
    if draw(st.booleans()):
        inputs = draw(arguments(dtypes=[torch.float32]))
        grid_size = inputs["grid_size"]
        return ops.background_score(inputs["features"], grid_size, *head_of(inputs)), grid_size
    grid_size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    slots = torch.randint(9, (draw(st.integers(0, 4)), math.prod(grid_size)), generator=generator)
    return 20.0 * torch.nn.functional.one_hot(slots, 9), grid_size


@given(any_logits())
def test_merging_follows_every_pointer_to_its_end(drawn):
    logits, grid_size = drawn
    parents = ops.background_merge(logits, grid_size, max_iters=0)
    roots = ops.background_merge(logits, grid_size, cycles="merge")
    for crop in range(len(parents)):
        assert parents[crop].tolist() == plain_parents(logits[crop], grid_size)
        path = parents[crop].tolist()
        assert roots[crop].tolist() == [cycle_root(path, cell) for cell in range(len(path))]
        names = components(path)
        pairs = set(zip(names, roots[crop].tolist(), strict=True))
        assert len(pairs) == len(set(names)) == len(roots[crop].unique())
    assert torch.equal(roots.gather(1, roots), roots)  # a root is its own root
    assert torch.equal(ops.background_merge(logits, grid_size, cycles="merge", max_iters=1), roots)


@given(any_logits(), st.integers(0, 12))
def test_official_and_merge_agree_where_a_path_ends(drawn, max_iters):
    logits, grid_size = drawn
    parents = ops.background_merge(logits, grid_size, max_iters=0)
    merged = ops.background_merge(logits, grid_size, cycles="merge")
    official = ops.background_merge(logits, grid_size, max_iters=max_iters)
    ended = parents.gather(1, official) == official
    assert torch.equal(official[ended], merged[ended])
    if max_iters == 12:  # far more steps than cells: all have ended that do not run in a circle
        for crop in range(len(parents)):
            path = parents[crop].tolist()
            ends = [
                path[cycle_root(path, cell)] == cycle_root(path, cell) for cell in range(len(path))
            ]
            assert ended[crop].tolist() == ends


@given(any_logits(), st.integers(0, 5))
def test_official_is_so_many_doublings(drawn, max_iters):
    logits, grid_size = drawn
    parents = ops.background_merge(logits, grid_size, max_iters=0)
    roots = ops.background_merge(logits, grid_size, max_iters=max_iters)
    for crop in range(len(parents)):
        path = parents[crop].tolist()
        for cell, root in enumerate(roots[crop].tolist()):
            for _ in range(2**max_iters):
                cell = path[cell]
            assert cell == root


def test_ties_go_to_the_lowest_index():
    logits = torch.zeros(1, 9, 9)
    parents = ops.background_merge(logits, (3, 3), max_iters=0)[0]
    # Corners and borders name themselves more than once; the center ties among all nine.
    assert parents.tolist() == [0, 0, 2, 0, 0, 2, 6, 6, 8]

    inputs = make_inputs(1, (3, 4), 8, 5)
    same = inputs["features"][:, :1].expand(-1, 12, -1)
    own = torch.arange(12)[None]
    result = ops.anchored_select(same, inputs["cls"], own, *anchor_of(inputs), 5)
    assert result.keep_indices[0].tolist() == [0, 1, 2, 3, 4]
    two = torch.tensor([[7] * 6 + [9] * 6])
    result = ops.anchored_select(same, inputs["cls"], two, *anchor_of(inputs), 4)
    assert result.keep_indices[0].tolist() == [0, 1, 7, 9]
    assert result.valid[0].tolist() == [False, False, True, True]


def test_gradients_by_finite_differences():
    inputs = make_inputs(2, (3, 4), 5, 4, dtype=torch.float64)
    features = inputs["features"].clone().requires_grad_()
    head, anchor = head_of(inputs), anchor_of(inputs)
    grid_size = inputs["grid_size"]
    assert torch.autograd.gradcheck(
        lambda *tensors: ops.background_score(tensors[0], grid_size, *tensors[1:]),
        (features, *[weight.requires_grad_() for weight in head]),
    )
    roots = ops.background_anchored(**inputs).assignment
    assert torch.autograd.gradcheck(
        lambda tensor: ops.anchored_select(tensor, inputs["cls"], roots, *anchor, 4).features,
        (features,),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_a_mean_goes_to_its_members_in_equal_parts(dtype):
    inputs = make_inputs(3, (5, 5), 8, 6, dtype=dtype)
    features = inputs["features"].clone().requires_grad_()
    result = ops.background_anchored(**(inputs | {"features": features}))
    result.features.sum().backward()
    expected = torch.zeros(3, 25, dtype=torch.float64)
    for crop in range(3):
        for root, count in zip(
            result.keep_indices[crop].tolist(), result.counts[crop].tolist(), strict=True
        ):
            expected[crop][result.assignment[crop] == root] = 1 / max(count, 1)
    torch.testing.assert_close(
        features.grad.double(),
        expected[:, :, None].expand(-1, -1, 8),
        atol=0,
        rtol=torch.finfo(dtype).eps,
    )


def test_gradients_of_scores_by_finite_differences():
    inputs = make_inputs(2, (3, 4), 5, 12, dtype=torch.float64)
    roots = ops.background_anchored(**inputs).assignment
    tensors = [inputs["features"], inputs["cls"], *anchor_of(inputs)]
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]

    def scores(features, cls, *anchor):
        result = ops.anchored_select(features, cls, roots, *anchor, 12)
        return result.scores[result.valid].double()

    assert scores(*tensors).shape[0] > 2
    # Scores are float32, and linear in each number that goes in: so a wide step is exact.
    assert torch.autograd.gradcheck(scores, tensors, eps=1e-1, atol=1e-5, rtol=1e-5)


def test_scores_are_differentiable_too():
    inputs = make_inputs(2, (4, 4), 8, 3)
    features = inputs["features"].clone().requires_grad_()
    cls = inputs["cls"].clone().requires_grad_()
    result = ops.background_anchored(**(inputs | {"features": features, "cls": cls}))
    result.scores.sum().backward()
    assert features.grad.abs().sum() > 0
    assert cls.grad.abs().sum() > 0


def test_a_grid_of_one():
    result = ops.background_anchored(**make_inputs(2, (1, 1), 4, 1))
    assert result.keep_indices.tolist() == [[0], [0]]
    assert result.assignment.tolist() == [[0], [0]]
