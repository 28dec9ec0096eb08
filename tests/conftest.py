"""What all tests share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open

# Without a GPU Triton runs its kernels on CPU tensors; it reads this when it is first imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# Each of xdist's workers has one core.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
settings.register_profile("default", deadline=None, max_examples=60)
settings.load_profile("default")

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
OPS_CASES = ("clip_l", "fewclusters", "grid24", "noisy", "oneiter", "rect", "small")
WEIGHTS = ("dw_weight", "pw_weight", "pw_bias", "q_weight", "q_bias", "k_weight", "k_bias")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded outputs of the published implementation, beside the checkout."""
    if not GOLDEN.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the golden data must be at {GOLDEN}")
        pytest.skip(f"no golden data at {GOLDEN}")
    return GOLDEN


@dataclass(frozen=True)
class OpsCase:
    """One recorded run of the token reduction: its tensors, and its sizes."""

    tensors: dict[str, torch.Tensor]
    grid_size: tuple[int, int]
    num_keep: int
    max_iters: int

    @property
    def features(self) -> torch.Tensor:
        return self.tensors["tokens"][:, 1:]

    @property
    def cls(self) -> torch.Tensor:
        return self.tensors["tokens"][:, 0]

    @property
    def head(self) -> list[torch.Tensor]:
        return [self.tensors[name] for name in WEIGHTS[:3]]

    @property
    def anchor(self) -> list[torch.Tensor]:
        return [self.tensors[name] for name in WEIGHTS[3:]]

    @property
    def weights(self) -> dict[str, Any]:
        return {name: self.tensors[name] for name in WEIGHTS}


@pytest.fixture(params=OPS_CASES)
def ops_case(request, golden) -> OpsCase:
    with safe_open(golden / f"ops_{request.param}.safetensors", framework="pt") as file:
        sizes = {name: int(value) for name, value in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    grid_size = sizes["height"], sizes["width"]
    return OpsCase(tensors, grid_size, sizes["keep"], sizes["max_iters"])
