"""Canvas and TokenMap: where an image lies, and where its tokens do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geollava import imagery
from geollava.imagery import Canvas, TokenMap

sides = st.integers(1, 5)


@given(st.integers(14, 9000), st.integers(14, 9000))
def test_a_canvas_is_one_of_the_allowed_and_holds_the_image(width, height):
    allowed = imagery.allowed_canvases(336, 64, 49)
    canvas = Canvas.choose((width, height), allowed, 336)
    assert canvas.size == imagery.select_canvas(width, height, allowed)
    rows, cols = canvas.grid
    assert canvas.crops == rows * cols
    assert canvas.size == (cols * 336, rows * 336)
    left, top, right, bottom = canvas.image_box
    assert (right - left, bottom - top) == canvas.fitted_size
    assert 0 <= left < right <= canvas.size[0]
    assert 0 <= top < bottom <= canvas.size[1]


def test_a_canvas_is_a_multiple_of_its_crops():
    with pytest.raises(ValueError, match=r"multiple of its crops' 336 px, got \(336, 300\)"):
        Canvas((10, 10), (336, 300), 336)


@given(sides, sides, sides, sides, st.integers(14, 700), st.integers(14, 700))
def test_a_token_lies_where_its_pixels_lie(rows, cols, token_rows, token_cols, width, height):
    crop = token_rows * token_cols * 14
    canvas = Canvas((width, height), (cols * crop, rows * crop), crop)
    places = TokenMap(canvas, (token_rows, token_cols))
    tokens = token_rows * token_cols
    numbers = np.arange(canvas.crops * tokens).reshape(canvas.crops, tokens)
    laid = places.over_canvas(numbers)
    assert laid.shape == places.shape
    indices = np.tile(np.arange(tokens), (canvas.crops, 1))
    row, col = places.cells(indices)
    assert np.array_equal(laid[row, col], numbers)
    boxes = places.canvas_boxes(indices)
    # Cell by cell: the box of a token holds its pixels and no other.
    step = (crop // token_cols, crop // token_rows)
    assert np.array_equal(boxes[..., 0], col * step[0])
    assert np.array_equal(boxes[..., 3], (row + 1) * step[1])
    pixels = places.pixel_boxes(indices)
    assert (pixels >= 0).all()
    assert (pixels[..., 2] <= width).all()
    assert (pixels[..., 3] <= height).all()
    area = (pixels[..., 2] - pixels[..., 0]) * (pixels[..., 3] - pixels[..., 1])
    assert area.sum() == pytest.approx(width * height)  # nothing twice, nothing left out


@given(st.integers(0, 399), st.integers(0, 199))
def test_a_point_is_touched_by_one_token(x, y):
    places = TokenMap(Canvas((400, 200), (672, 336), 336), (24, 24))
    indices = np.tile(np.arange(576), (2, 1))
    touched = places.touched(indices, (x + 0.4, y + 0.4, x + 0.5, y + 0.5))
    boxes = places.pixel_boxes(indices)
    inside = (boxes[..., 0] < x + 0.5) & (boxes[..., 2] > x + 0.4)
    inside &= (boxes[..., 1] < y + 0.5) & (boxes[..., 3] > y + 0.4)
    assert np.array_equal(touched, inside)
    assert 1 <= touched.sum() <= 4  # a box may lie over an edge


def test_no_place_on_the_earth():
    places = TokenMap(Canvas((56, 56), (56, 56), 56), (4, 4))
    with pytest.raises(ValueError, match="no georeference"):
        places.map_points(np.zeros((1, 2)))
