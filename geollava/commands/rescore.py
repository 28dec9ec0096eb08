"""`geollava evaluate rescore`: the same replies by every protocol in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from geollava.commands.console import in_columns
from geollava.commands.options import JsonOption, SplitOption, local_path
from geollava.common.choices import OnBadRows
from geollava.common.outputs import check_output, write_text


def rescore(
    predictions: Annotated[
        Path,
        typer.Argument(
            parser=local_path,
            metavar="PREDICTIONS",
            help="predictions.jsonl of geollava evaluate xlrs",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="What was asked, for the protocols that look at choices and categories"),
    ] = None,
    split: SplitOption = None,
    on_bad_rows: Annotated[
        OnBadRows, typer.Option(help="Whether rows without a reply end it, or count")
    ] = "refuse",
    out: Annotated[Path | None, typer.Option(help="Write the report there: Markdown")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the same XLRS-Bench replies by every protocol in use. Needs no model and no images."""
    from geollava.evaluate.benchmark import get_benchmark
    from geollava.evaluate.rows import Data
    from geollava.evaluate.studies.rescore import lines_of, markdown, notes_of, published_lines
    from geollava.evaluate.studies.rescore import rescore as score_again

    if out is not None:
        check_output(out, "the report", [".md"])
    rows = Data(get_benchmark("xlrs"), data, split) if data is not None else None
    results = score_again(predictions, on_bad_rows, rows)
    if out is not None:
        write_text(out, markdown(results))
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
        return
    for line in [*in_columns(lines_of(results)), *notes_of(results)]:
        print(line)
    print("Published figures, not measured here:")
    for figures, protocol, average, source in published_lines()[1:]:
        print(f"{figures}: {average}, by {protocol} ({source})")
