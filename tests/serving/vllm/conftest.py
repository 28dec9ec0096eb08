"""An environment with vLLM: `make test-vllm` makes one. Everywhere else these tests are skipped."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec

import pytest

if find_spec("vllm"):
    # Before vLLM is imported: a CPU, no hub, and the engine in the process that asks.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


@pytest.fixture(scope="session", autouse=True)
def imported():
    """What every engine imports, once for all forks."""
    pytest.importorskip("vllm", reason="needs an environment with vLLM: make test-vllm")
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401

    from tokenprune.serving.vllm.hosts import HOSTS

    for host in HOSTS.values():
        importlib.import_module(f"vllm.model_executor.models.{host.module}")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a tiny checkpoint, written once."""
    from .checkpoints import write
    from .forks import in_fork

    written = {}

    def folder(name):
        if name not in written:
            written[name] = in_fork(write, name, tmp_path_factory.mktemp(name))
        return written[name]

    return folder
