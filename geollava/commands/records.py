"""A record of options as one parameter of a command; typer sees an option for each field."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import OptionInfo


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The same command, with an option for each field of the dataclasses among its parameters.

    An option's name, type and default are the field's. What typer is told beside them stands in the
    field's `Annotated`; for a record that knows nothing of typer it stands in the parameter's:
    `Annotated[Record, {field: typer.Option(...)}]`.

    Raises:
        TypeError: a field of which typer is told nothing.
    """
    parameters: list[inspect.Parameter] = []
    records: dict[str, type] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        hint = parameter.annotation
        record, told = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, {})
        if is_dataclass(record):
            assert isinstance(record, type)
            records[name] = record
            parameters += options_of(record, told)
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, record in records.items():
            chosen = {field.name: values.pop(field.name) for field in fields(record)}
            values[name] = record(**chosen)
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def options_of(record: type, told: Mapping[str, OptionInfo]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    for field in fields(record):
        kind = hints[field.name]
        option = told.get(field.name)
        if option is not None:
            # What has a parser is one word of the command line, whatever becomes of it.
            kind = Annotated[str if option.parser is not None else kind, option]
        if get_origin(kind) is not Annotated:
            raise TypeError(f"{record.__name__}.{field.name} must have a typer.Option, it has none")
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=kind,
        )
