"""Directives that list what `geollava` knows: benchmarks, training keys, methods, columns.

Each becomes a table or a list of the code's own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, get_args

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def benchmarks() -> str:
    """Every benchmark of the folder, by its own record and the first words of its file."""
    from geollava.evaluate.benchmark import get_benchmark, own_modules

    lines = [
        "| command | what it is | subtasks | new tokens at most |",
        "| --- | --- | --- | --- |",
    ]
    for name, module in sorted(own_modules().items()):
        benchmark = get_benchmark(name)
        subtasks = str(len(benchmark.subtasks)) if benchmark.subtasks else "as in the data"
        about = (import_module(module).__doc__ or benchmark.title).split("\n\n")[0]
        about = linked(" ".join(about.split()).rstrip("."))
        lines.append(f"| `{name}` | {about} | {subtasks} | {benchmark.max_new_tokens:,} |")
    return "\n".join(lines)


def linked(text: str) -> str:
    """ "arXiv 2503.23771" -> a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def train_keys() -> str:
    """Every key of a training file, with its type, its default and what its class says of it."""
    from geollava.training import config

    lines: list[str] = []
    for place, section in sections(config.TrainConfig):
        lines += [f"**{f'`{place}:`' if place else 'The file itself'}** {first_line(section)}", ""]
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        told = attributes_of(section)
        for name, field in section.model_fields.items():
            default = "required" if field.is_required() else shown(field.default)
            value = kind_of(field.annotation, field.metadata)
            lines.append(f"| `{name}` | {value} | {default} | {told.get(name, '')} |")
        lines.append("")
    return "\n".join(lines)


def sections(root: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(key, class) of the file and of each section in it."""
    yield place, root
    for name, field in root.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if inspect.isclass(kind) and hasattr(kind, "model_fields"):
                yield from sections(kind, name)


def first_line(section: Any) -> str:
    return (inspect.getdoc(section) or "").splitlines()[0]


def attributes_of(section: Any) -> dict[str, str]:
    """What a docstring's `Attributes:` say, by name."""
    _, _, block = (inspect.getdoc(section) or "").partition("Attributes:\n")
    entries = re.findall(r"^    ([\w, ]+): (.*?)(?=^    \S|\Z)", block, re.M | re.S)
    return {
        name.strip(): " ".join(text.split()).replace("|", "\\|")
        for names, text in entries
        for name in names.split(",")
    }


def kind_of(annotation: Any, metadata: Any = ()) -> str:
    """Such as "`cosine`, `linear`", or "a number above 0"."""
    if annotation is type(None):
        return ""
    arguments = get_args(annotation)
    if getattr(annotation, "__name__", "") == "Literal" or "Literal" in str(type(annotation)):
        return ", ".join(f"`{value}`" for value in arguments)
    if hasattr(annotation, "__metadata__"):  # Annotated
        return kind_of(arguments[0], annotation.__metadata__)
    if inspect.isclass(annotation) and hasattr(annotation, "model_fields"):
        return "a section"
    if getattr(annotation, "__origin__", None) is list or annotation is list:
        return f"a list of {kind_of(arguments[0])}" if arguments else "a list"
    if arguments:
        return " or ".join(filter(None, map(kind_of, arguments)))
    names = {"int": "a whole number", "float": "a number", "bool": "`true`, `false`"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, {"Path": "a path", "str": "a text"}.get(name, name)) + bounds(metadata)


def bounds(metadata: Any) -> str:
    """Such as " from 1 to 4096"."""
    found = {}
    for each in metadata:
        for part in getattr(each, "metadata", [each]):
            found |= {
                name: getattr(part, name)
                for name in ("ge", "gt", "le", "lt")
                if hasattr(part, name)
            }
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    finite = {name: value for name, value in found.items() if value != float("inf")}
    return "".join(f" {words[name]} {finite[name]}" for name in words if name in finite)


def shown(default: Any) -> str:
    if default is None:
        return "-"
    if hasattr(type(default), "model_fields"):
        return "see below"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, list):
        return f"`[{', '.join(default)}]`"
    return f"`{default}`"


def crop_methods() -> str:
    """Names that `--method` takes, by when they choose."""
    from geollava.model.token_reduction import crop_methods, host_methods

    def spelled(names: list[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    return (
        f"- **Once for a scene**, crop by crop, before any question: {spelled(crop_methods())}.\n"
        f"- **For each question**, among what the first kind left: {spelled(host_methods())}."
    )


def conversation_commands() -> str:
    """What a line of a conversation that begins with / does."""
    from geollava.commands.conversation import HELP

    lines = ["| in a conversation | does |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{usage}` | {means} |" for usage, means in HELP)])


def batch_columns() -> str:
    """The columns of a batch's output, and their types."""
    from geollava.answering.finished import COLUMNS

    return ", ".join(f"`{name}` ({kind})" for name, kind in COLUMNS.items()) + "."


def directive(write: Callable[[], str]) -> type[SphinxDirective]:
    class Listed(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            self.env.note_reread()  # what it lists changes without this page
            return self.parse_text_to_nodes(write())

    return Listed


def setup(app: Sphinx) -> dict[str, Any]:
    for name, write in (
        ("benchmarks", benchmarks),
        ("train-keys", train_keys),
        ("crop-methods", crop_methods),
        ("conversation-commands", conversation_commands),
        ("batch-columns", batch_columns),
    ):
        app.add_directive(name, directive(write))
    return {"parallel_read_safe": True}
