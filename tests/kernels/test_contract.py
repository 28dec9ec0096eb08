"""Every method keeps its promises where the operators under it are kernels: in the interpreter."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch

import tokenprune.ops
from tests.tokenprune.test_methods import ALONE, build
from tokenprune.ops.common import launch
from tokenprune.testing import check_method

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")


@pytest.fixture
def kernels(monkeypatch):
    """Makes "auto" take the kernel wherever it can run, as it does on a GPU -> what was taken."""
    taken = []

    def resolve(impl, obstacle, *, on_gpu):
        chosen = launch.resolve_impl(impl, obstacle, on_gpu=True)
        taken.append(chosen)
        return chosen

    for module in pkgutil.walk_packages(tokenprune.ops.__path__, "tokenprune.ops."):
        if module.name != launch.__name__ and not module.name.endswith("kernel"):
            found = importlib.import_module(module.name)
            if hasattr(found, "resolve_impl"):
                monkeypatch.setattr(found, "resolve_impl", resolve)
    return taken


@pytest.mark.parametrize("name", ALONE)
def test_contract(kernels, name):
    check_method(build(name))
    # float64 is what kernels leave to the references.
    assert not kernels or kernels.count("triton") > kernels.count("reference")
