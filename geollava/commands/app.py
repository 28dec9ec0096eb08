"""The commands of `geollava`, assembled; `main.py` runs them, and says what goes wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from geollava.commands.ask import ask
from geollava.commands.batch import batch
from geollava.commands.evaluate import run_benchmark
from geollava.commands.export import export
from geollava.commands.page import serve_page
from geollava.commands.pilots import ablation, background
from geollava.commands.rescore import rescore
from geollava.commands.scenes import scenes
from geollava.commands.studies import failures, sweep
from geollava.commands.train import train
from geollava.commands.validate import validate
from geollava.evaluate.benchmark import list_benchmarks

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Questions to very large remote-sensing images.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        from tokenprune.version import __version__  # late: its package imports torch

        typer.echo(f"geollava {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What may stand before a command; Typer reads the signature."""


for command in (ask, batch, validate, train, export, scenes):
    app.command()(command)

app.command("app")(serve_page)

evaluate = typer.Typer(no_args_is_help=True, help="Scores of a model on benchmarks.")
for name in list_benchmarks():
    about = f"The benchmark {name}: every row asked, scored and reported."
    evaluate.command(name, help=about)(run_benchmark)
for study in (sweep, failures, background, ablation, rescore):
    evaluate.command()(study)
app.add_typer(evaluate, name="evaluate")
