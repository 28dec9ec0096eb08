"""`import tokenprune` needs torch alone."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys

FORBIDDEN = ("triton", "transformers", "torchvision", "accelerate", "PIL", "typer", "geollava")

class Absent:  # stands for packages that are not installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN and not TORCH_LOADING:
            raise ModuleNotFoundError(name)

TORCH_LOADING = True
sys.meta_path.insert(0, Absent())
import torch
before = set(sys.modules)
TORCH_LOADING = False

import tokenprune
tokens = tokenprune.VisionTokens(torch.randn(2, 6, 4), (2, 3), cls=torch.randn(2, 4))
for name in tokenprune.list_methods():
    if name != "background_anchored":
        tokenprune.get_method(name).reduce(tokens, 2)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not new & set(FORBIDDEN), new & set(FORBIDDEN)
assert "triton" not in sys.modules and "transformers" not in sys.modules
"""


def test_fresh_process():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_geollava_without_transformers_names_the_extra():
    script = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "try:\n"
        "    import geollava\n"
        "except ImportError as error:\n"
        "    assert 'tokenprune-vlm[hf]' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
