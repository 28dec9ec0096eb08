"""`docs/leaderboard.md`, of committed rows alone: what is claimed in it is computed.

In front stands what controls reach; after them methods. A method beats a control, or another
method, where their intervals are apart and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.leaderboard import rows
from benchmarks.leaderboard.composite import KINDS, PER_IMAGE
from benchmarks.leaderboard.controls import BLIND, MAJORITY, PLAIN, SMALLER, WHOLE
from benchmarks.leaderboard.fetch import PACKAGES
from benchmarks.leaderboard.host import LAYERS
from benchmarks.leaderboard.intervals import beats, pooled, score_of
from benchmarks.leaderboard.rows import BUDGETS, Row

PAGE = Path(__file__).parents[2] / "docs" / "leaderboard.md"
CONTROLS = (WHOLE, BLIND, MAJORITY, SMALLER, *PLAIN)
# Score of the board of features: its heading, and whether less of it is better.
FEATURE_SCORES = {
    "trees": ("trees kept", False),
    "buildings": ("buildings kept", False),
    "error": ("error", True),
    "labeled_error": ("error on objects", True),
}
SEEDS = 3  # that the board of answers is made for


def write_page(folder: Path = rows.FOLDER, path: Path = PAGE) -> Path:
    path.write_text(page(folder), encoding="utf-8")
    return path


def page(folder: Path = rows.FOLDER) -> str:
    features, answers = rows.read("features", folder), pool_seeds(rows.read("answers", folder))
    return (
        "\n\n".join(
            [
                HEAD,
                *front(features, answers),
                *of_features(features),
                *of_answers(answers),
                *end(features, answers),
            ]
        )
        + "\n"
    )


def pool_seeds(found: Sequence[Row]) -> list[Row]:
    """One row for each method and budget; `seeds` says of which seeds it is made.

    Raises:
        ValueError: rows of several data sets.
    """
    if len({row["data"] for row in found}) > 1:
        raise ValueError("rows of the board of answers must be of one data set")
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in found:
        groups.setdefault((row["method"], row["budget"]), []).append(row)
    merged = []
    for of_seeds in groups.values():
        row = of_seeds[0] | {"seeds": [one["seed"] for one in of_seeds]}
        if row["per_image"]:
            pairs = pooled([one["per_image"]["right"] for one in of_seeds])
            row["scores"] = {"right": score_of(pairs)}
            row["of_seeds"] = [one["scores"]["right"]["value"] for one in of_seeds]
        merged.append(row)
    return merged


def of(found: Iterable[Row], method: str, budget: float | None) -> Row | None:
    return next((r for r in found if (r["method"], r["budget"]) == (method, budget)), None)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def cell(row: Row | None, score: str) -> str:
    if row is None or score not in row["scores"]:
        return "-"
    low, high = row["scores"][score]["interval"]
    return f"{percent(row['scores'][score]['value'])} [{percent(low)}, {percent(high)}]"


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body))


def share(budget: float) -> str:
    return f"{budget:g}"


def methods_of(found: Sequence[Row]) -> list[str]:
    """Those with scores, controls left out."""
    names = dict.fromkeys(row["method"] for row in found if not row["refused"])
    return [name for name in names if name not in CONTROLS]


def best_control(found: Sequence[Row], score: str, less: bool, budget: float) -> Row | None:
    """The control of the best value at a budget."""
    controls = [
        row
        for name in (*PLAIN, SMALLER)
        if (row := of(found, name, budget)) is not None and score in row["scores"]
    ]
    pick: Callable[..., Row] = min if less else max
    return pick(controls, key=lambda row: row["scores"][score]["value"]) if controls else None


def claim_lines(found: Sequence[Row], score: str, heading: str, less: bool) -> list[str]:
    """For each budget who beats the best control, and whom it beats: intervals are apart."""
    lines = []
    for budget in BUDGETS:
        control = best_control(found, score, less, budget)
        if control is None:
            continue
        base, better, worse = control["scores"][score], [], []
        for name in methods_of(found):
            row = of(found, name, budget)
            if row is None or score not in row["scores"]:
                continue
            better += [name] if beats(row["scores"][score], base, less=less) else []
            worse += [name] if beats(base, row["scores"][score], less=less) else []
        beat = "beat" if len(better) > 1 else "beats"
        lines.append(
            f"- {heading}, {share(budget)} of the tokens: the best control is {control['method']} "
            f"with {cell(control, score)}; {listed(better)} {beat} it, it beats {listed(worse)}."
        )
    return lines


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "no method"


def front(features: Sequence[Row], answers: Sequence[Row]) -> list[str]:
    """What controls reach, and who beats the best of them."""
    parts = [
        "## What needs no method\n"
        "What controls reach, who is better than the best of them, and who is worse."
    ]
    if answers:
        parts.append(
            table(
                ("right answers, %", *map(share, BUDGETS)),
                [
                    (
                        name,
                        *(
                            cell(of(answers, name, budget) or of(answers, name, None), "right")
                            for budget in BUDGETS
                        ),
                    )
                    for name in CONTROLS
                ],
            )
        )
    lines = claim_lines(answers, "right", "Right answers", False)
    for score, (heading, less) in FEATURE_SCORES.items():
        lines += claim_lines(features, score, heading[0].upper() + heading[1:], less)
    return [*parts, "\n".join(lines)]


def of_features(features: Sequence[Row]) -> list[str]:
    parts = [
        FEATURES,
        "![Labeled trees kept, buildings kept and error by budget](leaderboard-features.png)",
    ]
    for budget in BUDGETS:
        names = [name for name in PLAIN if of(features, name, budget)] + methods_of(features)
        body = [
            (
                name if name in CONTROLS else f"`{name}`",
                *(cell(of(features, name, budget), score) for score in FEATURE_SCORES),
                milliseconds(of(features, name, budget)),
            )
            for name in names
        ]
        heading = (
            "method",
            *(f"{text}, %" for text, _ in FEATURE_SCORES.values()),
            "CPU ms a tile",
        )
        parts += [f"### {share(budget)} of the tokens", table(heading, body)]
    return [*parts, "![What methods keep of four tiles](leaderboard-kept.jpg)"]


def milliseconds(row: Row | None) -> str:
    return "-" if row is None else f"{1e3 * row['cpu_seconds']:.1f}"


def of_answers(answers: Sequence[Row]) -> list[str]:
    if not answers:
        return [ANSWERS, "No rows yet."]
    names = [
        *(name for name in CONTROLS if name not in (WHOLE, BLIND, MAJORITY)),
        *methods_of(answers),
    ]
    body = [
        (
            name if name in CONTROLS else f"`{name}`",
            *(cell(of(answers, name, budget), "right") for budget in BUDGETS),
        )
        for name in names
    ]
    parts = [
        ANSWERS,
        "![Right answers over tokens and over seconds](leaderboard-answers.png)",
        table(("right answers, %", *map(share, BUDGETS)), body),
    ]
    for budget in (0.25, 0.05):
        by_kind = [
            (
                name if name in CONTROLS else f"`{name}`",
                *(kind_cell(of(answers, name, budget), kind) for kind in KINDS),
            )
            for name in names
        ]
        whole = of(answers, WHOLE, None)
        by_kind.insert(0, (WHOLE, *(kind_cell(whole, kind) for kind in KINDS)))
        seed = answers[0]["seeds"][0]
        parts.append(f"By kind of question at {share(budget)} of the tokens, seed {seed}:")
        parts.append(table(("right, %", *KINDS), by_kind))
    return parts


def kind_cell(row: Row | None, kind: str) -> str:
    return "-" if row is None or not row["kinds"] else cell({"scores": row["kinds"]}, kind)


def end(features: Sequence[Row], answers: Sequence[Row]) -> list[str]:
    refused = [
        (f"`{row['method']}`", board, row["refused"])
        for board, found in (("features", features), ("answers", answers))
        for row in found
        if row["refused"]
    ]
    licenses = [(f"{p.name} {p.version}", p.holds, p.license) for p in PACKAGES]
    return [
        "## What is missing\n" + "\n".join(f"- {line}" for line in missing(features, answers)),
        "What a board cannot run, and what it says:",
        table(("method", "board", "why"), refused),
        HOW,
        table(("package", "what is read of it", "license"), licenses),
    ]


def missing(features: Sequence[Row], answers: Sequence[Row]) -> list[str]:
    """What was not measured, of what the boards are made for."""
    from tokenprune import list_methods

    lines = []
    for board, found in (("features", features), ("answers", answers)):
        there = {(row["method"], row["budget"]) for row in found}
        gone = {row["method"] for row in found if row["budget"] is None}
        absent: dict[tuple[float, ...], list[str]] = {}
        for name in list_methods():
            budgets = tuple(budget for budget in BUDGETS if (name, budget) not in there)
            if budgets and name not in gone:
                absent.setdefault(budgets, []).append(f"`{name}`")
        for budgets, names in absent.items():
            shares = ", ".join(map(share, budgets))
            lines.append(f"Rows of the board of {board} at {shares}: {', '.join(names)}.")
    seeds = {seed for row in answers for seed in row["seeds"]}
    if len(seeds) < SEEDS:
        lines.append(
            f"Hosts of {SEEDS - len(seeds)} of {SEEDS} seeds: rows are of {len(seeds)}, and an "
            "interval says nothing of another training of the host."
        )
    return lines or ["Nothing of what the boards are made for."]


HEAD = """# Scoreboard

<!-- `make leaderboard` makes this of committed rows; a test holds that it is up to date. -->

Every method of this library on features of a pretrained vision tower, and in a small model that
answers questions. Values are shares in percent with bootstrap intervals by image, 95 in
100. **One method beats another only where their intervals are apart**; the sentences that say so
are computed. Where many are compared, one in some will look better by chance."""

FEATURES = """## Real features and labels
Tiles of real aerial and satellite pictures go through a pretrained ViT-S/14 (DINOv2's form), 256
tokens a tile. *Kept*: the share of labeled objects of which at least one token is kept; a cluster
counts where its root lies, and pooled rows, which hold no token as it was, do not count. *Error*:
the squared distance of each token to the nearest row that remains, relative to the spread of the
tile's tokens; the mean alone, which is blind, has 100. The tiles come from five pictures: intervals
over tiles say nothing of other places. A smaller picture is no row here: its features differ for
reasons of scale."""

ANSWERS = f"""## Answers
A small LLaVA behind the same tower, frozen, trained on pictures of two to four shapes of easy-VQA
over aerial ground, and asked {PER_IMAGE} questions about each of 125 pictures with other shapes on
other ground. It was trained on all tokens and under no method. Answers come from `generate` under
`tokenprune.apply`; the tower's output is recorded once and replayed. *Blind*: the question without
a picture; *majority answer*: the most common answer to these words in training, without a model;
*smaller image*: the picture encoded at fewer pixels, with as many tokens as fit into the budget.
**`fastv` and `pyramiddrop` work inside the language model**: the first of its {LAYERS} layers read
all tokens, so that their budget is not that of the others, and a deeper model would be another
matter."""

HOW = """## How it is made
`make leaderboard` writes this page of committed rows. A row is measured by one command, which skips
rows that are there and goes on after it was stopped:
`python -m benchmarks.leaderboard add divprune` is one method on both boards, at all budgets; with
`all`, every method and control. It downloads the packages below.

A row holds versions, hashes of data and weights, and what its score is made of image by image; a
row that was altered is refused. Seconds are CPU seconds of one thread."""
