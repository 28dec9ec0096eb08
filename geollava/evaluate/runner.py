"""Every row of a benchmark answered: resumable, in batches, over any number of processes.

What is finished stands in part files, one per process, until all is; a run that was killed goes on
from there and ends with the same predictions.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import transformers

from geollava.common.outputs import written_whole
from geollava.evaluate.models.answerer import Answerer, Reply
from geollava.evaluate.processes import Processes
from geollava.evaluate.rows import Data, Example
from tokenprune.version import __version__

ON_BAD_ROWS = ("refuse", "count-wrong", "skip")
SETTINGS, PREDICTIONS, RESULTS = "settings.json", "predictions.jsonl", "results.json"
Line = dict[str, Any]


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
) -> tuple[list[Example], list[Line], dict[str, Any]]:
    """(rows that were asked, a line for each, the settings that must not change between runs).

    Args:
        out: the folder of results; lines that are there already are not computed again.
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
    finished = read_lines(out)
    todo = [e for e in examples if e.problem is None and e.number not in finished]
    if processes.first:
        settings = claim(out, settings, working=bool(todo))
    processes.wait()

    groups = grouped([example for example in examples if example.problem is None], options)
    own = groups[processes.rank :: processes.count]
    done, total = 0, sum(map(len, own))
    with appending(out / f"part-{processes.rank}.jsonl") as write:
        for group in own:
            if any(example.number not in finished for example in group):
                for lines in answered(data, answerer, group, options, limit, finished):
                    write([line for line in lines if line["row"] not in finished])
            done += len(group)
            if progress is not None:
                progress(done, total)
    processes.wait()

    finished = read_lines(out)
    lines = [
        line_of(data, example, problem=example.problem)
        if example.problem is not None
        else finished[example.number]
        for example in examples
    ]
    return examples, lines, settings


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
    finished: dict[int, Line],
) -> Iterator[list[Line]]:
    """Lines of rows about the same images, a batch at a time.

    Batches do not depend on what is finished, for a reply may depend on its batch in the last bit:
    one that is finished in part is computed again.
    """
    start = time.perf_counter()
    try:
        with data.open(None if options.blind else group[0]) as scenes:
            seen = answerer.see(scenes)
    except (ValueError, OSError) as error:  # the header was good, the pixels are not
        yield [failed(data, example, error, options) for example in group]
        return
    seconds = {"encode": (time.perf_counter() - start) / len(group)}
    counts: dict[str, Any] = {
        "crops": seen.crops,
        "tokens_before": seen.tokens_before,
        "tokens_after": seen.tokens_after,
    }
    for first in range(0, len(group), options.batch_size):
        batch = group[first : first + options.batch_size]
        if all(example.number in finished for example in batch):
            continue
        start = time.perf_counter()
        lines, prepared = [], []
        for example in batch:
            try:
                prompt = data.benchmark.build_prompt(example.row)
                prepared.append((example, answerer.prepare(seen, prompt, limit)))
            except ValueError as error:  # too long for the model, or with marks of its own
                lines.append(failed(data, example, error, options))
        if prepared:
            replies = answerer.ask(seen, [inputs for _, inputs in prepared], limit)
            seconds["answer"] = (time.perf_counter() - start) / len(prepared)
            lines += [
                line_of(data, example, reply, **counts, seconds=dict(seconds))
                for (example, _), reply in zip(prepared, replies, strict=True)
            ]
        yield lines


def failed(data: Data, example: Example, error: Exception, options: Options) -> Line:
    message = str(error).strip().splitlines()[0]
    if options.on_bad_rows == "refuse":
        raise ValueError(f"row {example.number} (index {example.index}): {message}") from error
    return line_of(data, example, problem=message)


def line_of(
    data: Data,
    example: Example,
    reply: Reply | None = None,
    problem: str | None = None,
    **values: Any,
) -> Line:
    line: Line = {
        "row": example.number,
        "index": example.index,
        "images": list(example.images),
        "subtask": data.subtask_of(example),
        "answer": example.row.get("answer"),
    }
    if reply is None:
        return line | {"problem": problem}
    return {
        **line,
        "reply": reply.text,
        "understood": data.benchmark.read_reply(example.row, reply.text),
        "credit": float(data.benchmark.grade(example.row, reply.text)),
        "confidence": reply.confidence,
        **({} if reply.dropped is None else {"dropped": reply.dropped}),
        **values,
    }


def claim(out: Path, settings: dict[str, Any], *, working: bool) -> dict[str, Any]:
    """Makes the folder, or makes sure that what is in it came from the same settings.

    Args:
        working: this run adds to the folder.

    Returns:
        The settings with `made_with`: what each run that added something ran on.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    makers = known.get("made_with", [])
    for name in {**settings, **known}.keys() - {"made_with"}:
        if known.get(name) != settings.get(name):
            raise ValueError(
                f"{out} holds results with {name} = {known.get(name)!r}, expected "
                f"{settings.get(name)!r}: remove it or write elsewhere"
            )
    if working and software() not in makers:
        makers = [*makers, software()]
        with written_whole(path) as partial:
            text = json.dumps({**settings, "made_with": makers}, indent=1, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")
    return {**settings, "made_with": makers}


def software() -> dict[str, str | None]:
    """Versions, and the commit of the checkout that this runs from (null where it is installed)."""
    folder, commit = Path(__file__).resolve().parents[2], None
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        with suppress(OSError, subprocess.CalledProcessError):
            commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "tokenprune-vlm": __version__,
        "commit": commit and commit.strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def read_lines(out: Path) -> dict[int, Line]:
    """What is finished, by row; a line that a kill cut short is not."""
    finished: dict[int, Line] = {}
    for path in [out / PREDICTIONS, *sorted(out.glob("part-*.jsonl"))]:
        if not path.exists():
            continue
        for text in path.read_bytes().split(b"\n")[:-1]:
            line = json.loads(text)
            finished.setdefault(line["row"], line)
    return finished


class appending:  # noqa: N801
    """Lines into a file, on the disk before the next batch begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Callable[[list[Line]], None]:
        if self.path.exists():  # a kill may have cut the last line
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.truncate(self.path, whole)
        self.file: IO[str] = self.path.open("a", encoding="utf-8")
        return self.write

    def write(self, lines: list[Line]) -> None:
        # An index or an answer may be of a type of Arrow's that JSON has not.
        self.file.writelines(
            json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines
        )
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(self, *error: object) -> None:
        self.file.close()
