"""A page per method, `_generated/methods/NAME.md`, from its class; and the table of all.

Adding a method stays one file: its page is its docstring, its declarations, its options, what it
kept of the crop in the picture, and the committed rows that measured it.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import figures
from sections import Docstring, table
from tokenprune import LayerMethod, Method, list_methods, method_class, ops
from tokenprune.cli import APPROXIMATION, faithful_of, is_approximation, method_rows
from tokenprune.method import BUDGET, required_options
from tokenprune.tokens import BY_LAYER

ARXIV = "https://arxiv.org/abs/"
OWN_PACKAGE = "tokenprune.methods."
NEEDED = {  # as a reader calls it, and as random numbers for the example
    "cls": ("the class token", "torch.randn(2, 64)"),
    "attention": ("the tower's attention", "torch.rand(2, 576).softmax(1)"),
    "keys": ("a tower layer's keys", "torch.randn(2, 576, 64)"),
    "queries": ("a tower layer's queries", "torch.randn(2, 576, 64)"),
    "hidden_states": ("outputs of tower layers", "torch.randn(2, 576, 64)"),
    "received": ("attention received in tower layers", "torch.rand(2, 576)"),
    "cls_logits": ("the class token's attention before the softmax", "torch.randn(2, 576)"),
    "text": ("the question's embeddings", "torch.randn(2, 8, 64)"),
    "image_embeds": ("tokens in a joint space", "torch.randn(2, 576, 32)"),
    "text_embeds": ("the question in that space", "torch.randn(2, 1, 32)"),
    "layers": ("the language model's layers, through `tokenprune.apply`", None),
}
CONTROLS = ("random", "spatial_pool")  # beside every measured method
PICTURE = (
    "Left: one crop of a scene drawn by `geollava.scenes`, 576 tokens. Right: what the method "
    "makes of it with a budget of 24, in the shipped small model{asked}."
)
ASKED = ", asked “What is the color of the object beside the fire?”"


def page(name: str, *, picture: bool) -> str:
    method = method_class(name)
    doc = Docstring.of(method)
    parts = [f"# `{name}`", doc.summary]
    if issubclass(method, LayerMethod) and "Example" not in doc.sections:
        parts.insert(0, "<!-- blocks: scene -->")
    if picture:
        asked = "" if method.query_agnostic else ASKED
        parts += [
            f"![What {name} keeps of a crop]({name}.jpg)",
            f"*{PICTURE.format(asked=asked)} [All methods](../../tokenprune/methods.md).*",
        ]
    parts += [linked(doc.text), declarations(name, method)]
    for section in ("Formula", "Cost", "Fails when"):
        if section in doc.sections:
            parts += [f"## {section}", linked(doc.sections[section])]
    parts += ["## How faithful", faithful(method, doc)]
    if options := option_rows(method, doc):
        parts += ["## Options", options]
    parts += ["## Example", example(name, method, doc)]
    if rows := measured(name):
        parts += ["## Measured", rows]
    return "\n\n".join(part for part in parts if part) + "\n"


def linked(text: str) -> str:
    """Names of operators and methods as links, outside of formulas and blocks."""
    text = re.sub(
        r"`tokenprune\.ops\.(\w+)`",
        lambda m: f"[`{m[1]}`](../operators/{m[1]}.md)" if m[1] in ops.__all__ else m[0],
        text,
    )
    return re.sub(
        r"(?<!\[)`(\w+)`(?!\])",
        lambda m: f"[`{m[1]}`]({m[1]}.md)" if m[1] in list_methods() else m[0],
        text,
    )


def declarations(name: str, method: type[Method]) -> str:
    needs = [NEEDED[need][0] for need in method.needs]
    if weights := required_options(method):
        needs.append("the model's weights: " + ", ".join(f"`{option}`" for option in weights))
    used = [f"[`{op}`](../operators/{op}.md)" for op in operators_of(method)]
    rows = [
        ("needs", "; ".join(needs) or "the tokens alone"),
        ("looks at the grid", "yes" if method.uses_grid else "no"),
        ("reads the question", "no" if method.query_agnostic else "yes"),
        ("merges", "yes" if method.merges else "no, tokens stay as they are"),
        ("operators", ", ".join(used) or "-"),
        ("faithful", faithful_of(method)),
        ("paper", f"[arXiv {method.paper}]({ARXIV}{method.paper})" if method.paper else "-"),
        ("class", f"`{method.__module__}.{method.__name__}`"),
    ]
    return table((f"`{name}`", ""), rows)


def operators_of(method: type[Method]) -> list[str]:
    source = inspect.getsource(inspect.getmodule(method) or method)
    called = re.findall(r"\b(?:ops\.)?(\w+)\(", source)
    if "merge_tokens(" in source:  # of `tokenprune.selection`
        called += ["most_similar", "cluster_mean"]
    return sorted({name for name in called if name in ops.__all__ and name.islower()})


def faithful(method: type[Method], doc: Docstring) -> str:
    parts = []
    if method.approximates and not is_approximation(method):
        parts.append(
            f"**{method.faithful}**, whose recorded outputs it reproduces. With its defaults one "
            f"thing differs: {method.approximates}."
        )
    elif method.approximates:
        parts.append(
            "**An approximation.** With its defaults it departs from its paper's official code in: "
            f"{method.approximates}. Do not report it as the paper's method."
        )
    parts.append(linked(doc.sections.get("Faithful", "")))
    return "\n\n".join(part for part in parts if part) or "Nothing is declared."


def option_rows(method: type[Method], doc: Docstring) -> str:
    says = doc.entries("Attributes", "Args")
    says["strict"] = "raise on tokens that are not finite; one more read"
    rows = [
        (f"`{option.name}`", default_of(option), linked(says.get(option.name, "")) or "-")
        for option in fields(method)
        if option.name not in BUDGET
    ]
    return table(("option", "default", "meaning"), rows)


def default_of(option: Field[Any]) -> str:
    if option.default is option.default_factory is MISSING:
        return "required"
    return f"`{option.default!r}`" if option.default is not MISSING else "-"


def example(name: str, method: type[Method], doc: Docstring) -> str:
    if "Example" in doc.sections:
        return doc.sections["Example"]
    if issubclass(method, LayerMethod):
        code = [
            "import geollava",
            "",
            f'session = geollava.Session(method="{name}", num_keep=12)  # of 24 that a crop keeps',
            'answer = session.see("scene.jpg").ask("What is the land use around the helipad?")',
            "print(answer.text, answer.tokens_before, answer.tokens_after)",
        ]
        words = (
            "In the shipped model; any model that is supported takes it through "
            "{py:func}`tokenprune.apply`, by the same name."
        )
        return f"{words}\n\n" + "\n".join(["```python", *code, "```"])
    given = [f"    {need}={random_numbers(need, method)}," for need in method.needs]
    given += ["    frames=4,"] if method.over_time else []
    grid_size = (12, 12) if method.over_time else (24, 24)
    code = [
        "import torch",
        "",
        "import tokenprune",
        "",
        "torch.manual_seed(0)",
        "tokens = tokenprune.VisionTokens(",
        "    torch.randn(2, 576, 64),",
        f"    grid_size={grid_size},",
        *given,
        ")",
        f'reduced = tokenprune.get_method("{name}").reduce(tokens, num_keep=24)',
        "assert reduced.features.shape == (2, 24, 64)",
        "print(reduced.keep_indices[0])  # where they lie, ascending",
    ]
    in_a_model = (
        f'In a model that hands these over: `tokenprune.apply(model, "{name}", keep_ratio=0.25)`; '
        "see {py:func}`tokenprune.apply`."
    )
    return "\n".join(["```python", *code, "```", "", in_a_model])


def random_numbers(need: str, method: type[Method]) -> str:
    _, numbers = NEEDED[need]
    if need not in BY_LAYER:
        return str(numbers)
    return f"{{{', '.join(f'{layer}: {numbers}' for layer in method.tower_layers[need])}}}"


# -- measured rows --------------------------------------------------------------------------------


def measured(name: str) -> str:
    parts = [on_made_up_scenes(name), in_the_shipped_model(name)]
    return "\n\n".join(part for part in parts if part)


def on_made_up_scenes(name: str) -> str:
    rows = figures.rows("methods/cpu-1-threads-x86_64")
    mine = [row for row in rows if row["impl"] == name]
    if not mine:
        return ""
    crops, grid, width, _ = mine[0]["shape"]
    others = [control for control in CONTROLS if control != name]
    body = [
        (
            f"`{row['impl']}`",
            str(row["shape"][3]),
            figures.percent(row["objects_kept"]),
            figures.percent(row["objects_seen"]),
            figures.percent(row["reconstruction_error"]),
            figures.milliseconds(row["latency_ms"]["p50"] / crops),
            figures.mebibytes(row["peak_memory_mib"]),
        )
        for impl in (name, *others)
        for row in sorted(rows, key=lambda row: row["shape"][3])
        if row["impl"] == impl
    ]
    words = (
        f"{crops} made-up scenes of {grid[0]} × {grid[1]} tokens, {width:,} wide, with small "
        "objects planted in them (`benchmarks/compare_methods.py`), one CPU thread, beside "
        f"{' and '.join(f'`{other}`' for other in others)}. Kept: object tokens whose place is "
        "kept. Seen: object tokens to which a token of the result is similar. Error: squared "
        "distance of tokens to the nearest of the result, of their spread. This compares methods "
        "on such scenes, not answers of models."
    )
    if required_options(method_class(name)):
        words += " **Its weights are random here.**"
    headings = ("method", "budget", "kept", "seen", "error", "time per crop", "extra memory")
    return f"{words}\n\n{table(headings, body)}"


def in_the_shipped_model(name: str) -> str:
    sweep = figures.result("small_model/sweep")
    cells = {(cell["method"], cell["num_keep"]): cell for cell in sweep["cells"]}
    budgets = sorted({budget for method, budget in cells if method == name}, reverse=True)
    if not budgets:
        return ""
    others = [control for control in CONTROLS if control != name]
    body = [
        (f"`{method}`", *(score(cells[method, budget]) for budget in budgets))
        for method in (name, *others)
    ]
    words = (
        f"Right answers of the shipped small model to {sweep['rows']['asked']} open questions "
        f"about {sweep['scenes']} scenes it has not seen, with 95 % bootstrap intervals by scene. "
        "It was trained under `background_anchored` alone."
    )
    headings = ("tokens are chosen by", *(f"{budget} kept per crop" for budget in budgets))
    return f"{words}\n\n{table(headings, body)}"


def score(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{figures.percent(cell['score'])} [{100 * low:.1f}, {100 * high:.1f}]"


# -- Sphinx ---------------------------------------------------------------------------------------


def methods_table() -> str:
    """All methods, each with a link to its page."""
    body = []
    for shown, summary, needs, agnostic, merges, checked, paper, _ in method_rows():
        name = shown.removesuffix(APPROXIMATION)
        notes = {
            "asks": agnostic == "no",
            "merges": merges == "yes",
            "approximation": shown != name,
        }
        body.append(
            (
                f"[`{name}`](../_generated/methods/{name}.md)",
                summary,
                needs,
                ", ".join(note for note, holds in notes.items() if holds) or "-",
                checked,
                paper if paper == "-" else f"[{paper}]({ARXIV}{paper})",
            )
        )
    return table(("method", "what it does", "needs", "notes", "faithful", "paper"), body)


def write_pages(app: Any) -> None:
    folder = Path(app.srcdir) / "_generated" / "methods"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for name in list_methods():
        text = page(name, picture=(folder / f"{name}.jpg").exists())
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    figures.TABLES["methods"] = methods_table
    app.connect("builder-inited", write_pages, priority=900)  # once the pictures are drawn
    return {"parallel_read_safe": True, "parallel_write_safe": True}
