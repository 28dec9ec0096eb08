"""The directive `commands`: all commands and options, from the parsers that the commands use.

`geollava` is a typer app, `tokenprune` an argparse parser. Both become the same Markdown, so that
the page cannot list an option that is not there, nor miss one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

Described = tuple[tuple[str, str], ...]  # (as it is written, what it means) of each


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: with those it stands under, such as "geollava evaluate sweep".
        about: what it does, its first line first.
    """

    name: str
    about: str
    arguments: Described
    options: Described


def typer_commands(command: Any, name: str) -> Iterator[Command]:
    """A command of typer and all below it."""
    children = getattr(command, "commands", {})
    for child, below in children.items():
        yield from typer_commands(below, f"{name} {child}")
    if not children:
        context = command.make_context(name, [], resilient_parsing=True)
        parameters = [each for each in command.params if each.name != "help"]
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        options = [each for each in parameters if each.param_type_name == "option"]
        yield Command(
            name,
            command.help or "",
            # A record's own name adds the Python type to it.
            tuple(
                (each.metavar or each.name.upper(), record(each, context)[1]) for each in arguments
            ),
            tuple(record(each, context) for each in options),
        )


def record(parameter: Any, context: Any) -> tuple[str, str]:
    written, means = parameter.get_help_record(context)
    return written, means


def argparse_commands(parser: argparse.ArgumentParser, about: str = "") -> Iterator[Command]:
    """A parser of argparse and all below it."""
    actions = parser._actions
    below = [each for each in actions if isinstance(each, argparse._SubParsersAction)]
    for group in below:
        helps = {each.dest: each.help or "" for each in group._choices_actions}
        for name, child in group.choices.items():
            yield from argparse_commands(child, helps.get(name, ""))
    if not below:
        shown = [each for each in actions if each.dest != "help"]
        yield Command(
            parser.prog,
            parser.description or about,
            tuple((each.dest.upper(), help_of(each)) for each in shown if not each.option_strings),
            tuple((spelled(each), help_of(each)) for each in shown if each.option_strings),
        )


def spelled(action: argparse.Action) -> str:
    """Such as "--dtype <float32|bfloat16>"."""
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = "|".join(map(str, action.choices)) if action.choices else action.metavar or action.dest
    return f"{names} <{value}>"


def help_of(action: argparse.Action) -> str:
    if action.nargs == 0 or action.default in (None, argparse.SUPPRESS):
        return action.help or ""
    return f"{action.help or ''}  [default: {action.default}]".strip()


def commands_of(program: str) -> list[Command]:
    """All commands of `geollava` or `tokenprune`."""
    if program == "geollava":
        from typer.main import get_command

        from geollava.commands.app import app

        return list(typer_commands(get_command(app), program))
    from tokenprune.cli import make_parser

    return list(argparse_commands(make_parser()))


def markdown(commands: list[Command]) -> str:
    """A section for each command. Neighbors with the same options share one."""
    lines: list[str] = []
    for _, group in groupby(commands, lambda each: (each.arguments, each.options)):
        alike = list(group)
        first = alike[0]
        if len(alike) == 1:
            lines += [f"## `{first.name}`", "", paragraphs(first.about), ""]
        else:
            parent, _, _ = first.name.rpartition(" ")
            lines += [f"## `{parent} ...`: {len(alike)} commands with the same options", ""]
            lines += [*(f"- `{each.name}`: {paragraphs(each.about)}" for each in alike), ""]
        for described in (first.arguments, first.options):
            for written, means in described:
                lines += [f"`{written}`", f": {escaped(means) or 'as its name says'}", ""]
    return "\n".join(lines)


def paragraphs(text: str) -> str:
    """A docstring's paragraphs, each on a line."""
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(escaped(part) for part in parts if part)


def escaped(text: str) -> str:
    """Markdown that shows the text as it is; what stands in backticks is code."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        for mark in "\\[]<>*_":
            parts[place] = parts[place].replace(mark, "\\" + mark)
        parts[place] = re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", parts[place])
    return "`".join(parts)


class CommandsDirective(SphinxDirective):
    """`{commands} geollava`: a section for each command of the program."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # what it lists changes without this page
        text = markdown(commands_of(self.arguments[0]))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("commands", CommandsDirective)
    return {"parallel_read_safe": True}
