"""The hosts, out of the adapters: what each says of itself, and which methods it takes when tried.

```{hosts}            one row for each family, and what a budget counts for
```{hosts} listed     every type of the installed transformers, as `list_hosts` has it
```{hosts} refused    every method that a family refuses, in the words of the error
```{refusals} PATH    the errors that files of the project raise, and reasons of adapters

What an adapter says of itself is its docstring: the first line names the models, the paragraph that
begins with "A budget counts for" says what a budget counts. The rest is tried, on the tiny models
with random weights that the tests have of every family.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from figures import table

ROOT = Path(__file__).resolve().parents[2]
OWN = ("tokenprune", "geollava")
BUDGET = "A budget counts for "
# Options that fit the tiny models' few layers.
OPTIONS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 1},
    "hiprune": {"object_layer": 0},
    "nuwa": {"layers": (-2,)},
    "pyramiddrop": {"layers": (1, 3)},
}
PROMPT = [[3, 0, 4]]  # text, an image, text


@dataclass(frozen=True)
class Family:
    """Hosts of one adapter.

    Attributes:
        names: as the docstring's first line has them.
        model_types: of their configurations.
        unit: what a budget counts for, "image" or "crop".
        budget: the same at length, a sentence.
        positions: how many axes they have.
        attention: whom the tokens' attention comes from, and the tower of the model that was tried.
        offers: what methods are handed beside features and text, by the models that were tried.
        refused: method -> the error's text.
    """

    names: str
    model_types: tuple[str, ...]
    unit: str
    budget: str
    positions: str
    attention: str
    offers: str
    refused: dict[str, str]


@functools.cache
def families() -> list[Family]:
    """This project's own; those of other packages that are installed are left out."""
    from tokenprune.hosts.registry import known_adapters

    adapters = dict.fromkeys(known_adapters().values())
    own = [one for one in adapters if one.__module__.partition(".")[0] in OWN]
    return [family_of(adapter) for adapter in own]


def family_of(adapter: Any) -> Family:
    paragraphs = [" ".join(part.split()) for part in inspect.getdoc(adapter).split("\n\n")]
    budget = [part for part in paragraphs if part.startswith(BUDGET)]
    if len(budget) != 1:
        raise ValueError(f"one paragraph of {adapter.__name__} must begin with {BUDGET!r}")
    tried = [(made, refusals(made)) for made in tiny(adapter.model_types)]
    return Family(
        names=paragraphs[0].rstrip("."),
        model_types=adapter.model_types,
        unit=adapter.unit,
        budget=budget[0].removeprefix(BUDGET),
        positions="several axes" if adapter.positions_need_grid else "one axis",
        attention=attention_of([made for made, _ in tried]),
        offers=offers_of([made for made, _ in tried]),
        refused={name: text for _, found in tried for name, text in found.items()},
    )


# -- what is tried ---------------------------------------------------------------------------------


def tiny(model_types: Iterable[str]) -> list[Any]:
    """Models of the types that the tests build most, else of the first type, and their prompts."""
    import torch

    from tests.geollava.model import test_apply
    from tests.tokenprune.families import FAMILIES
    from tests.tokenprune.hosts import HOSTS, TEXT

    known = [name for name in model_types if name in FAMILIES]
    made = []
    with mock.patch.dict(TEXT, num_hidden_layers=4), torch.random.fork_rng():
        for name in [name for name in known if name in HOSTS] or known[:1]:
            torch.manual_seed(0)
            made.append(FAMILIES[name]())
        if "geollava" in model_types:
            torch.manual_seed(0)
            made.append(test_apply.built(test_apply.AFTER, test_apply.NUM_KEEP))
    if not made:
        raise ValueError(f"tests/tokenprune/families must build one of {', '.join(model_types)}")
    return made


def attention_of(models: Iterable[Any]) -> str:
    from tokenprune import get_method
    from tokenprune.hosts.registry import find_adapter

    towers: dict[str, list[str]] = {}
    for made in models:
        adapter = find_adapter(made.model)
        refused = adapter.why_not(get_method("fastervlm")) is not None
        if refused or "attention" not in adapter.offers:
            return "not read"
        tower = adapter.config.vision_config.model_type.removesuffix("_model")
        whom = "the class token" if adapter.num_prefix_tokens else "all tokens"
        towers.setdefault(whom, []).append(tower.removesuffix("_vision"))
    return "; ".join(f"{whom} ({', '.join(names)})" for whom, names in towers.items())


def offers_of(models: Iterable[Any]) -> str:
    from tokenprune.hosts.registry import find_adapter

    offered = set().union(*(find_adapter(made.model).offers for made in models))
    return in_code(sorted(offered - {"features", "text"}))


def in_code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def refusals(made: Any) -> dict[str, str]:
    """The methods that the host does not take -> why, by trying each of them on a prompt."""
    import torch

    import tokenprune
    from tokenprune.hosts.registry import find_adapter

    found = {}
    inputs = made.inputs(PROMPT)
    for name in tokenprune.list_methods():
        try:
            method = tokenprune.get_method(name, **OPTIONS.get(name, {}))
        except ValueError as error:  # the model's weights, which none of these has
            found[name] = str(error).removeprefix(f"{name} ")
            continue
        if method.over_time and find_adapter(made.model).videos is not None:
            continue  # the prompt has images alone
        try:
            with torch.no_grad(), tokenprune.apply(made.model, method, keep_ratio=0.5) as handle:
                made.model(**inputs)
            report = handle.report()
            if report.tokens_after >= report.tokens_before:
                raise RuntimeError(f"{name} removed nothing from {made.model_type}")
        except NotImplementedError as error:
            found[name] = str(error)
    return found


# -- tables ----------------------------------------------------------------------------------------


def hosts_table() -> str:
    """The table, and below it what a budget counts for."""
    everywhere = set.intersection(*(set(family.refused) for family in families()))
    body, budgets = [], []
    for family in families():
        types = ", ".join(f"`{one}`" for one in family.model_types)
        others = len(set(family.refused) - everywhere)
        body.append(
            (
                f"**{family.names}**",
                types,
                family.unit,
                family.positions,
                family.attention,
                family.offers,
                f"{others}, see below" if others else "-",
            )
        )
        budgets.append(f"- **{family.names}**: {family.budget}")
    headings = (
        "hosts", "`model_type`", "budget per", "positions", "attention of", "hands over", "refuses",
    )  # fmt: skip
    return "\n\n".join((table(headings, body), "A budget counts for", "\n".join(budgets)))


def refused_table() -> str:
    """Each reason once, with the families and methods that it is given for."""
    reasons: dict[str, tuple[list[str], list[str]]] = {}
    for family in families():
        for name, text in family.refused.items():
            methods, names = reasons.setdefault(without_class(text), ([], []))
            methods.append(f"`{name}`")
            names.append(family.names)
    body = [
        (", ".join(dict.fromkeys(methods)), hosts_of(names), text.replace("|", r"\|"))
        for text, (methods, names) in reasons.items()
    ]
    return table(("methods", "hosts", "reason"), body)


def listed_table() -> str:
    """Every type of models, those that are shown to work first."""
    from tokenprune import list_hosts

    listed = list_hosts()
    supported = [host for host in listed if host.supported]
    body = [
        (f"`{one.model_type}`", f"`{one.adapter}`", one.positions, in_code(one.offers))
        for one in supported
    ]
    refused = [(f"`{one.model_type}`", one.reason) for one in listed if not one.supported]
    return "\n\n".join(
        (
            f"{len(supported)} types of {len(listed)} are shown to work:",
            table(("`model_type`", "adapter", "positions", "hands over"), body),
            "The others are not:",
            table(("`model_type`", "reason"), refused),
        )
    )


def hosts_of(names: list[str]) -> str:
    different = list(dict.fromkeys(names))
    return "all" if len(different) == len(families()) else "; ".join(different)


def without_class(text: str) -> str:
    """The error without the method's class in front."""
    first, _, rest = text.partition(" ")
    return rest if first[:1].isupper() and rest else text


def raised_in(paths: Iterable[Path], kind: str) -> list[tuple[str, str]]:
    """(file, text) of each error of a kind that is made in files, values as "…".

    What a `why_not` gives becomes an error where it is asked.
    """
    found = []
    for path in paths:
        texts: dict[str, ast.expr] = {}  # "message = ...", then "Error(message)"
        for node in walk_in_order(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                texts[node.targets[0].id] = node.value
            said: list[ast.expr] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == kind:
                said = node.args[:1]
            if isinstance(node, ast.FunctionDef) and node.name.startswith("why_not"):
                given = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
                said = [one for one in given if one is not None and ast.unparse(one) != "None"]
            for argument in said:
                if isinstance(argument, ast.Name):
                    argument = texts.get(argument.id, argument)
                text = spelled(argument)
                if any(letter.isalpha() for letter in text):
                    found.append((path.name, text))
    return list(dict.fromkeys(found))


def walk_in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk_in_order(child)


def spelled(node: ast.expr) -> str:
    """The text of a string, a formatted string or a sum of them; "…" for anything else."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return spelled(node.left) + spelled(node.right)
    return "…"


def refusals_table(folder: str, kind: str = "NotImplementedError") -> str:
    paths = sorted((ROOT / folder).glob("*.py"))
    body = [(text.replace("|", r"\|"), f"`{name}`") for name, text in raised_in(paths, kind)]
    return table(("refused", "in"), body)


def setup(app: Any) -> dict[str, bool]:
    from sphinx.util.docutils import SphinxDirective

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))

    class Hosts(SphinxDirective):  # type: ignore[misc]
        optional_arguments = 1

        def run(self) -> list[Any]:
            tables = {"refused": refused_table, "listed": listed_table}
            text = tables.get(" ".join(self.arguments), hosts_table)()
            return list(self.parse_text_to_nodes(text))

    class Refusals(SphinxDirective):  # type: ignore[misc]
        required_arguments = 1

        def run(self) -> list[Any]:
            return list(self.parse_text_to_nodes(refusals_table(self.arguments[0])))

    app.add_directive("hosts", Hosts)
    app.add_directive("refusals", Refusals)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
