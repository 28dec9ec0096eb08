"""The command `tokenprune`: what methods there are. Exit codes: 0, 2 for wrong usage."""

from __future__ import annotations

import argparse
import dataclasses

from tokenprune.method import Method, list_methods, method_class

HEADINGS = ("method", "what it does", "needs", "query-agnostic", "merges", "paper")


def method_rows() -> list[tuple[str, ...]]:
    """A row under `HEADINGS` for each method, from what its class declares."""
    return [_row(name, method_class(name)) for name in list_methods()]


def _row(name: str, method: type[Method]) -> tuple[str, ...]:
    summary = (method.__doc__ or "").strip().splitlines()[0].rstrip(".")
    spelled = {"cls": "class token", "layers": "the language model's layers"}
    needs = [spelled.get(field, field) for field in method.needs]
    if any(
        option.default is option.default_factory is dataclasses.MISSING
        for option in dataclasses.fields(method)
    ):
        needs.append("the model's weights")
    return (
        name,
        summary[:1].lower() + summary[1:],
        ", ".join(needs) or "-",
        "yes" if method.query_agnostic else "no",
        "yes" if method.merges else "-",
        method.paper or "-",
    )


def markdown_table() -> str:
    """The methods as the README shows them."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name, *rest, paper in method_rows():
        link = paper if paper == "-" else f"[{paper}](https://arxiv.org/abs/{paper})"
        lines.append((f"`{name}`", *rest, link))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text_table() -> str:
    """The methods in columns."""
    table = [HEADINGS, *method_rows()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in table
    ]
    return "\n".join(line.rstrip() for line in padded)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokenprune", description="Fewer visual tokens.")
    commands = parser.add_subparsers(required=True, metavar="command")
    methods = commands.add_parser("methods", help="the methods, and what each declares")
    methods.add_argument("--markdown", action="store_true", help="as the README's table")
    options = parser.parse_args(arguments)
    print(markdown_table() if options.markdown else text_table())


if __name__ == "__main__":
    main()
