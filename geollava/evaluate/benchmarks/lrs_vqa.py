"""LRS-VQA (arXiv 2503.07588): open questions of eight categories to images of up to 27,328 pixels.

The data is JSON lines: `question_id`, `image` (a path), `text` (the prompt in full), `ground_truth`
(a word or a number) and `category`; where there is an `id` such as "FAIR_12", its first part names
the source, and each source gets its own accuracies as in the public evaluation.

A reply counts when it is the answer, letter case aside, or names the same WordNet synset (the
public evaluation asks for a path similarity above 0.8, which different synsets never have). Micro
is the published overall accuracy (OA), macro the published average accuracy (AA).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from geollava.common.extras import install
from geollava.evaluate.benchmark import Benchmark, Row, get_field


def build_prompt(row: Mapping[str, Any]) -> str:
    return str(get_field(row, "question"))


def is_correct(row: Mapping[str, Any], reply: str) -> bool:
    answer, said = str(get_field(row, "answer")).lower(), reply.lower()
    return said == answer or (bool(said) and not synsets(said).isdisjoint(synsets(answer)))


def synsets(word: str) -> set[Any]:
    """The meanings of a word in WordNet.

    Raises:
        ImportError: nltk or its copy of WordNet is missing.
    """
    try:
        from nltk.corpus import wordnet

        return set(wordnet.synsets(word))
    except (ModuleNotFoundError, LookupError) as error:
        raise ImportError(
            f"LRS-VQA is scored with WordNet: {install('evaluate')}, then "
            "python -m nltk.downloader wordnet"
        ) from error


def by_source(
    rows: Sequence[Row], replies: Sequence[str], credit: Sequence[float]
) -> dict[str, float]:
    """Overall and average accuracy of each source, where rows name one."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, value in zip(rows, credit, strict=True):
        if "id" in row:
            found[str(row["id"]).split("_")[0]][str(row["category"])].append(value)
    scores = {}
    for source, categories in sorted(found.items()):
        every = [value for values in categories.values() for value in values]
        scores[f"OA {source}"] = sum(every) / len(every)
        each = [sum(values) / len(values) for values in categories.values()]
        scores[f"AA {source}"] = sum(each) / len(each)
    return scores


BENCHMARK = Benchmark(
    name="lrs-vqa",
    title="LRS-VQA",
    build_prompt=build_prompt,
    subtask_of=lambda row: str(get_field(row, "category")),
    read_reply=lambda row, reply: reply.lower(),
    grade=is_correct,
    chance=lambda row: 0.0,
    max_new_tokens=128,
    columns={"question_id": "index", "text": "question", "ground_truth": "answer"},
    more=by_source,
)
