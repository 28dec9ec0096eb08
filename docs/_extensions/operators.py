"""A page per operator, `_generated/operators/NAME.md`, from its folder; and the table of all."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import figures
from sections import Docstring, table, without_own_sections
from tokenprune import ops
from tokenprune.ops.common.launch import CONFIGS

FOLDER = Path(inspect.getfile(ops)).parent
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
LONGEST_LINE = 76


def names() -> list[str]:
    return [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]


def folder(name: str) -> Path:
    """An operator's own folder, or its family's."""
    return FOLDER / getattr(ops, name).__module__.split(".")[-2]


def kernels(name: str) -> list[str]:
    """The launch configurations that an operator's own kernels are started with."""
    if not has_kernel(name):
        return []
    text = (folder(name) / "kernel.py").read_text(encoding="utf-8")
    found = re.findall(r'launch_config(?:_of_crops)?\(\s*f?"([\w{}]+)"', text)
    return [one.replace("{objective}", name.removesuffix("_select")) for one in found]


def has_kernel(name: str) -> bool:
    return (folder(name) / "kernel.py").exists()


def signature(name: str) -> str:
    """Without annotations, which the API page has; weights as the types that hold them."""
    given = inspect.signature(getattr(ops, name)).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in given]
    line = f"ops.{name}{inspect.Signature(bare)}"
    if len(line) <= LONGEST_LINE:
        return line
    parts = [str(parameter) for parameter in bare]
    parts.insert(next(n for n, one in enumerate(bare) if one.kind is one.KEYWORD_ONLY), "*")
    return "\n".join([f"ops.{name}(", *(f"    {part}," for part in parts), ")"])


def page(name: str) -> str:
    doc = Docstring.of(getattr(ops, name))
    parts = [
        f"# `ops.{name}`",
        doc.summary,
        f"```text\n{signature(name)}\n```",
        f"Arguments, results and errors: {{py:func}}`tokenprune.ops.{name}`.",
        doc.text,
    ]
    for section in ("Formula", "Cost"):
        parts += [f"## {section}", doc.sections[section]]
    parts += ["## Backward", backward(doc), "## Kernel", kernel(name)]
    parts += ["## Example", doc.sections["Example"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def backward(doc: Docstring) -> str:
    says = doc.sections["Backward"]
    words = {
        "-": "None: indices have no gradient.",
        "yes": "In both implementations.",
        "what is kept": "Of the kept tokens' features; the choice itself has none.",
        "reference only": "In the reference; the kernel raises where a gradient is wanted of it.",
    }
    return words.get(says, f"{says[:1].upper()}{says[1:]}.")


def kernel(name: str) -> str:
    if not has_kernel(name):
        return "None of its own: it is made of other operators, whose kernels run."
    if not kernels(name):
        return "Its launches are those of the operators that it joins."
    body = []
    for kernel in kernels(name):
        for architecture in ARCHITECTURES:
            for kind, config in launch_configs(architecture)[kernel].items():
                blocks = ", ".join(f"{key} {value}" for key, value in config.items())
                body.append((f"`{kernel}`", architecture, kind, f"`{blocks}`"))
    words = (
        "Launch configurations are data (`tokenprune/ops/common/launch_configs/`); a GPU takes "
        "those of the newest architecture below that is not newer than it."
    )
    return f"{words}\n\n{table(('kernel', 'architecture', 'dtype', 'configuration'), body)}"


def launch_configs(architecture: str) -> Any:
    return json.loads((CONFIGS / f"{architecture}.json").read_text(encoding="utf-8"))


def operators_table() -> str:
    body = []
    for name in names():
        doc = Docstring.of(getattr(ops, name))
        body.append(
            (
                f"[`{name}`](../_generated/operators/{name}.md)",
                doc.summary.rstrip("."),
                doc.sections["Backward"],
                "yes" if has_kernel(name) else "of its parts",
            )
        )
    return table(("operator", "what it does", "backward", "kernel"), body)


def write_pages(app: Any) -> None:
    folder = Path(app.srcdir) / "_generated" / "operators"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for name in names():
        (folder / f"{name}.md").write_text(page(name), encoding="utf-8")


def leave_out(app: Any, what: str, name: str, documented: Any, options: Any, lines: Any) -> None:
    lines[:] = without_own_sections(lines)


def setup(app: Any) -> dict[str, bool]:
    figures.TABLES["operator_list"] = operators_table
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", leave_out, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
