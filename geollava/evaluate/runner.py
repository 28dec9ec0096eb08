"""Every row of a benchmark answered: resumable, in batches, over any number of processes.

What is finished stands in part files, one per process, until all is; a run that was killed goes on
from there and ends with the same predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from geollava.common.choices import OnBadRows
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.evaluate.predictions import Prediction
from geollava.evaluate.processes import Processes
from geollava.evaluate.results_folder import appending, claim, finished
from geollava.evaluate.rows import Data, Example
from geollava.moved import names_of

ON_BAD_ROWS = get_args(OnBadRows)

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)


@dataclass(frozen=True)
class Options:
    """How a benchmark is run.

    Attributes:
        blind: ask without the image.
        batch_size: questions about the same images at a time.
        max_new_tokens: length limit of a reply; None is the benchmark's.
        limit: only the first so many rows.
        on_bad_rows: "refuse" them before anything is asked, "count-wrong" or "skip".
        seed: of the bootstrap.
    """

    blind: bool = False
    batch_size: int = 8
    max_new_tokens: int | None = None
    limit: int | None = None
    on_bad_rows: str = "refuse"
    seed: int = 0


def answer_all(
    data: Data,
    answerer: Answerer,
    out: Path,
    options: Options,
    processes: Processes,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Example], list[Prediction], dict[str, Any]]:
    """Rows that were asked, a prediction for each, the settings that must not change between runs.

    Args:
        out: the folder of results; rows that are finished there are not computed again.
        progress: called with (rows done, rows in all) of this process.

    Raises:
        ValueError: a bad row where they are refused; a folder with results of other settings.
    """
    examples = data.examples(blind=options.blind, limit=options.limit)
    refuse(examples, options)
    limit = options.max_new_tokens or data.benchmark.max_new_tokens
    settings = {
        "benchmark": data.benchmark.name,
        "data": data.digest(),
        **answerer.protocol(blind=options.blind),
        "blind": options.blind,
        "batch_size": options.batch_size,
        "max_new_tokens": limit,
    }
    done = finished(out)
    todo = [e for e in examples if e.problem is None and e.number not in done]
    if processes.first:
        settings = claim(out, settings, working=bool(todo))
    processes.wait()

    groups = grouped([example for example in examples if example.problem is None], options)
    own = groups[processes.rank :: processes.count]
    passed, total = 0, sum(map(len, own))
    with appending(out, processes.rank) as append:
        for group in own:
            if any(example.number not in done for example in group):
                for batch in answered(data, answerer, group, options, limit, done):
                    append(made for made in batch if made.number not in done)
            passed += len(group)
            if progress is not None:
                progress(passed, total)
    processes.wait()

    done = finished(out)
    predictions = [
        done[example.number]
        if example.problem is None
        else not_asked(data, example, example.problem)
        for example in examples
    ]
    return examples, predictions, settings


def refuse(examples: list[Example], options: Options) -> None:
    bad = [example for example in examples if example.problem is not None]
    if options.on_bad_rows not in ON_BAD_ROWS:
        raise ValueError(
            f"--on-bad-rows must be one of {', '.join(ON_BAD_ROWS)}, got {options.on_bad_rows}"
        )
    if bad and options.on_bad_rows == "refuse":
        more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
        raise ValueError(
            f"row {bad[0].number} (index {bad[0].index}): {bad[0].problem}{more}; "
            "--on-bad-rows count-wrong or skip goes on without them"
        )
    if len(bad) == len(examples):
        raise ValueError(f"every row is bad, the first: {bad[0].problem}")


def grouped(examples: list[Example], options: Options) -> list[list[Example]]:
    """Rows about the same images, together; without images, any that make a batch."""
    if options.blind:
        size = options.batch_size
        return [examples[first : first + size] for first in range(0, len(examples), size)]
    groups: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.images, []).append(example)
    return list(groups.values())


def answered(
    data: Data,
    answerer: Answerer,
    group: list[Example],
    options: Options,
    limit: int,
    done: Mapping[int, Prediction],
) -> Iterator[list[Prediction]]:
    """Predictions for rows about the same images, a batch at a time.

    Batches do not depend on what is done, for a reply may depend on its batch in the last bit: one
    that is done in part is computed again.
    """
    start = time.perf_counter()
    try:
        with data.open(None if options.blind else group[0]) as scenes:
            seen = answerer.see(scenes)
    except (ValueError, OSError) as error:  # the header was good, the pixels are not
        yield [failed(data, example, error, options) for example in group]
        return
    encode = (time.perf_counter() - start) / len(group)
    for first in range(0, len(group), options.batch_size):
        batch = group[first : first + options.batch_size]
        if all(example.number in done for example in batch):
            continue
        start = time.perf_counter()
        predictions, prepared = [], []
        for example in batch:
            try:
                prompt = data.benchmark.build_prompt(example.row)
                prepared.append((example, answerer.prepare(seen, prompt, limit)))
            except ValueError as error:  # too long for the model, or with marks of its own
                predictions.append(failed(data, example, error, options))
        if prepared:
            replies = answerer.ask(seen, [inputs for _, inputs in prepared], limit)
            seconds = {
                "encode": encode,
                "answer": (time.perf_counter() - start) / len(prepared),
            }
            predictions += [
                predicted(data, example, seen, reply, seconds)
                for (example, _), reply in zip(prepared, replies, strict=True)
            ]
        yield predictions


def failed(data: Data, example: Example, error: Exception, options: Options) -> Prediction:
    message = str(error).strip().splitlines()[0]
    if options.on_bad_rows == "refuse":
        raise ValueError(f"row {example.number} (index {example.index}): {message}") from error
    return not_asked(data, example, message)


def not_asked(data: Data, example: Example, problem: str) -> Prediction:
    return Prediction(**known(data, example), problem=problem)


def predicted(
    data: Data, example: Example, seen: Seen, reply: Reply, seconds: Mapping[str, float]
) -> Prediction:
    return Prediction(
        **known(data, example),
        reply=reply.text,
        understood=data.benchmark.read_reply(example.row, reply.text),
        credit=float(data.benchmark.grade(example.row, reply.text)),
        confidence=reply.confidence,
        dropped=reply.dropped,
        crops=seen.crops,
        tokens_before=seen.tokens_before,
        tokens_after=seen.tokens_after if reply.tokens is None else reply.tokens,
        seconds=seconds,
    )


def known(data: Data, example: Example) -> dict[str, Any]:
    """What a prediction holds of its row."""
    return {
        "number": example.number,
        "index": example.index,
        "images": example.images,
        "subtask": data.subtask_of(example),
        "answer": example.row.get("answer"),
    }
