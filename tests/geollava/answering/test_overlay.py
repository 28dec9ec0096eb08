"""The map behind the overlay."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from geollava.answering import overlay
from geollava.answering.encoding import SceneTokens
from geollava.imagery import Canvas
from tokenprune import ReducedTokens


@given(
    crop_rows=st.integers(1, 3),
    crop_cols=st.integers(1, 3),
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_every_token_lies_where_its_crop_lies(crop_rows, crop_cols, rows, cols, seed):
    torch.manual_seed(seed)
    crops, num_tokens = crop_rows * crop_cols, rows * cols
    assignment = torch.randint(0, num_tokens, (crops, num_tokens))
    keep_indices = torch.stack(
        [torch.randperm(num_tokens)[: (num_tokens + 1) // 2].sort().values for _ in range(crops)]
    )
    valid = torch.rand(keep_indices.shape) < 0.7
    kept = ReducedTokens(
        features=torch.zeros(*keep_indices.shape, 1),
        keep_indices=keep_indices,
        valid=valid,
        assignment=assignment,
        scores=torch.zeros(keep_indices.shape),
        grid_size=(rows, cols),
    )
    size = (56 * crop_cols, 56 * crop_rows)
    roots, members = overlay.token_maps(SceneTokens(kept, Canvas(size, size, 56)))
    for crop in range(crops):
        chosen = set(keep_indices[crop][valid[crop]].tolist())
        for token in range(num_tokens):
            y = crop // crop_cols * rows + token // cols
            x = crop % crop_cols * cols + token % cols
            assert roots[y, x] == (token in chosen)
            assert members[y, x] == (int(assignment[crop, token]) in chosen)
