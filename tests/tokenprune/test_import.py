"""`import tokenprune` needs torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys

FORBIDDEN = ("triton", "transformers", "torchvision", "accelerate", "PIL", "typer", "geollava")

import torch
before = set(sys.modules)
assert not before & set(FORBIDDEN), before & set(FORBIDDEN)
sys.modules.update(dict.fromkeys(FORBIDDEN))  # as if they were not installed

import tokenprune
import tokenprune.cli
import tokenprune.testing
from tokenprune.method import required_options
tokenprune.cli.main(["methods"])
for name in tokenprune.list_methods():
    chosen = tokenprune.method_class(name)
    if not required_options(chosen) and not issubclass(chosen, tokenprune.LayerMethod):
        tokens = tokenprune.testing.tokens_for(chosen(), 4, batch=2, grid_size=(2, 3))
        chosen().reduce(tokens, 2)
assert all(sys.modules[name] is None for name in FORBIDDEN)
try:
    tokenprune.ops.background_score(
        torch.randn(1, 4, 16), (2, 2), torch.randn(16, 1, 3, 3), torch.randn(9, 16, 1, 1),
        torch.randn(9), impl="triton",
    )
except NotImplementedError as error:
    assert "tokenprune-vlm[triton]" in str(error), error
else:
    raise AssertionError("ran without Triton")
"""


def test_fresh_process():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_geollava_without_transformers_names_the_extra():
    script = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "try:\n"
        "    from geollava import GeoLlavaConfig\n"
        "except ImportError as error:\n"
        "    assert 'tokenprune-vlm[hf]' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_old_paths_work_for_one_release():
    script = (
        "import warnings\n"
        "import tokenprune\n"
        "assert callable(tokenprune.apply)\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    from tokenprune.adapter import Adapter, ImageLayout, TokenGrid\n"
        "    from tokenprune.adapters.llava import Llava\n"
        "assert (Adapter, ImageLayout) == (tokenprune.Adapter, tokenprune.ImageLayout)\n"
        "from tokenprune.hosts.families import llava\n"
        "assert Llava is llava.Llava\n"
        "kinds = [one.category for one in said if 'tokenprune' in str(one.message)]\n"
        "assert kinds == [DeprecationWarning] * 2, [str(one.message) for one in said]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_classes_in_one_file_are_named(tmp_path, monkeypatch):
    from tokenprune import Method, methods
    from tokenprune.plugins import load_plugin

    source = (
        "from tokenprune.methods.random import Random\n"
        "class One(Random): ...\n"
        "class Two(Random): ...\n"
    )
    (tmp_path / "twofold.py").write_text(source)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    with pytest.raises(TypeError, match="must hold one subclass of Method, got One, Two"):
        load_plugin("tokenprune.methods", "twofold", Method)
