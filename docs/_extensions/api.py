"""Pages of the API, from each module's `__all__`: `_generated/api/MODULE.md`."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = {  # what a user imports; every name in its `__all__` is public
    "tokenprune": "The plug-in interface, methods and what they take and give.",
    "tokenprune.ops": "The operators: plain functions on tensors.",
    "tokenprune.testing": "Checks for methods of your own.",
    "geollava": "The model, its processor and the session.",
}


def public_names(module: Any) -> list[str]:
    return [
        name
        for name in module.__all__
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    ]


def page(name: str, summary: str) -> str:
    module = import_module(name)
    lines = [f"# `{name}`", "", summary, "", "```{eval-rst}", f".. py:module:: {name}", ""]
    for public in public_names(module):
        kind = "class" if inspect.isclass(getattr(module, public)) else "function"
        lines.append(f".. auto{kind}:: {name}.{public}")
        if kind == "class":
            lines += ["   :members:", "   :show-inheritance:"]
        lines.append("")
    return "\n".join([*lines, "```", ""])


def write_pages(app: Any) -> None:
    folder = Path(app.srcdir) / "_generated" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for name, summary in MODULES.items():
        (folder / f"{name}.md").write_text(page(name, summary), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
