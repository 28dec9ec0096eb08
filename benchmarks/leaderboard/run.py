"""The command: measure what committed rows lack, and make the page of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.leaderboard import pictures, rows
from benchmarks.leaderboard.answers import WITHOUT_BUDGET, AnswersBoard
from benchmarks.leaderboard.controls import BLIND, MAJORITY, PLAIN, SMALLER, WHOLE
from benchmarks.leaderboard.kept import FeaturesBoard
from benchmarks.leaderboard.page import write_page
from benchmarks.leaderboard.train_host import train_host
from tokenprune import list_methods

SEEDS = (0, 1, 2)
CONTROLS = {
    "features": (BLIND, SMALLER, *PLAIN),
    "answers": (WHOLE, BLIND, MAJORITY, SMALLER, *PLAIN),
}


def names_of(board: str) -> list[str]:
    """Controls first, so that no method's row is read without them."""
    return list(dict.fromkeys([*CONTROLS[board], *list_methods()]))


def measure(
    board_name: str,
    board: FeaturesBoard | AnswersBoard,
    names: Iterable[str],
    folder: Path,
    budgets: Sequence[float] = rows.BUDGETS,
) -> int:
    """Measures the rows that are not there, one by one on disk; returns how many.

    Rows of other data or weights are no rows of this board: they are measured again.
    """
    seed = board.seed if isinstance(board, AnswersBoard) else None
    there = {
        rows.key(row)
        for row in rows.read(board_name, folder)
        if (row["data"], row["weights"]) == (board.data, board.weights)
    }
    measured = 0
    for name in names:
        without = board.refusal(name) is not None
        without |= board_name == "answers" and name in WITHOUT_BUDGET
        for budget in (None,) if without else budgets:
            if (name, budget, seed) in there:
                continue
            row = board.row(name, budget)
            rows.put(board_name, row, folder)
            measured += 1
            score = row["scores"].get("right") or row["scores"].get("trees")
            print(board_name, name, budget, score or row["refused"], flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("add", "the rows of one method"), ("all", "of every method and control")):
        command = commands.add_parser(name, help=text)
        if name == "add":
            command.add_argument("method", help="a name of `tokenprune methods`, or of a control")
        command.add_argument("--board", choices=rows.BOARDS, action="append")
        command.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
        command.add_argument(
            "--budgets", type=float, nargs="+", choices=rows.BUDGETS, default=list(rows.BUDGETS)
        )
    commands.add_parser("page", help="docs/leaderboard.md and its plots, of committed rows")
    commands.add_parser("overlays", help="the picture of what methods keep of real tiles")
    options = parser.parse_args()
    if options.command == "page":
        print(write_page(), *pictures.save(pictures.draw_scores()), sep="\n")
        return
    if options.command == "overlays":
        print(*pictures.save({"leaderboard-kept.jpg": pictures.draw_kept()}), sep="\n")
        return
    torch.set_num_threads(1)
    for board in options.board or rows.BOARDS:
        names = names_of(board)
        if options.command == "add":
            if options.method not in names:
                parser.error(f"method must be one of {', '.join(names)}, got {options.method}")
            names = [options.method]
        if board == "features":
            measure(board, FeaturesBoard(), names, rows.FOLDER, options.budgets)
            continue
        for seed in options.seeds:
            train = partial(train_host, progress=partial(print, "training step and loss:"))
            measure(board, AnswersBoard(seed, train=train), names, rows.FOLDER, options.budgets)
