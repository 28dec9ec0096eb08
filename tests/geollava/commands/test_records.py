"""A record of options as one parameter of a command."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import typer

from geollava.commands.app import app
from geollava.commands.options import number
from geollava.commands.records import spread


@dataclass(frozen=True)
class Plain:
    """One that knows nothing of typer."""

    kind: Literal["a", "b"] = "a"
    pair: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Own:
    size: Annotated[int, number("How many")]
    name: Annotated[str | None, typer.Option(help="Which")] = None


def pair_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


PlainOptions = Annotated[
    Plain, {"kind": typer.Option(help="Kind"), "pair": typer.Option(parser=pair_of)}
]


def called_with(*arguments):
    calls = []

    def command(place: str, *, own: Own, plain: PlainOptions, loud: bool = False) -> None:
        calls.append((place, own, plain, loud))

    single = typer.Typer()
    single.command()(spread(command))
    single(list(arguments), standalone_mode=False)
    return calls[0]


def test_fields_become_options_and_options_fields():
    assert called_with("x", "--size", "3") == ("x", Own(3), Plain(), False)
    arguments = ("x", "--size", "3", "--name", "n", "--kind", "b", "--pair", "4,2", "--loud")
    assert called_with(*arguments) == ("x", Own(3, "n"), Plain("b", (4, 2)), True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x",), "size"),
        (("x", "--size", "0"), "must be a number from 1, got 0"),
        (("x", "--size", "1", "--kind", "c"), "is not one of"),
    ],
)
def test_what_a_field_refuses(arguments, message):
    with pytest.raises(Exception, match=message) as refused:
        called_with(*arguments)
    assert message in refused.value.format_message()


def test_a_field_that_nothing_is_told_of():
    def command(*, plain: Annotated[Plain, {"kind": typer.Option()}]) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match=r"Plain\.pair must have a typer.Option, it has none"):
        spread(command)


def test_no_command_has_many_parameters():
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    commands = [command.callback for group in groups for command in group.registered_commands]
    assert len(commands) > 10
    for command in commands:
        assert len(inspect.signature(inspect.unwrap(command)).parameters) <= 8
