"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(2)
settings.register_profile("default", deadline=None)
settings.load_profile("default")

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded outputs of the published implementation, beside the checkout."""
    if not GOLDEN.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the golden data must be at {GOLDEN}")
        pytest.skip(f"no golden data at {GOLDEN}")
    return GOLDEN
