"""XLRS-Bench detailed captioning (arXiv 2503.23771): a description of the whole image.

Rows are expected as `index`, `image` and `answer` (or `caption`): the reference. Whether the hub's
files name their columns so could not be looked up. A row may have a `question`; figures compare
with published ones only where it is the benchmark's own long prompt, which its authors publish with
their evaluation. A reply's credit is ROUGE-L (F1, stemmed, by rouge-score); beside it stand BLEU-1
to BLEU-4 and chrF over all rows (by sacrebleu). No metric here needs Java or a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from geollava.common.extras import install
from geollava.evaluate.benchmark import Benchmark, Row, get_field

REQUEST = (
    "Describe this remote sensing image in detail: first the area as a whole, then each of its "
    "nine parts from left to right and top to bottom, and at last what its zones, roads, water, "
    "vegetation and traffic tell about it. Write plain sentences without headings."
)


def rouge_l(row: Mapping[str, Any], reply: str) -> float:
    score = rouge_scorer().score(reference_of(row), reply)
    return float(score["rougeL"].fmeasure)


def reference_of(row: Mapping[str, Any]) -> str:
    answer, choices = get_field(row, "answer"), "multi-choice options"
    if isinstance(answer, str) and row.get(choices) is None:
        return answer
    got = f"{answer!r} beside {choices!r}" if isinstance(answer, str) else repr(answer)
    raise ValueError(f"row {row.get('index', '?')}: 'answer' must be a description, got {got}")


@cache
def rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ImportError(f"captions are scored by rouge-score: {install('evaluate')}") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def corpus_scores(
    rows: Sequence[Row], replies: Sequence[str], credit: Sequence[float]
) -> dict[str, float]:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ModuleNotFoundError as error:
        raise ImportError(f"captions are scored by sacrebleu: {install('evaluate')}") from error
    references = [[str(row["answer"]) for row in rows]]
    scores = {
        f"BLEU-{order}": BLEU(max_ngram_order=order).corpus_score(list(replies), references).score
        for order in (1, 2, 3, 4)
    }
    scores["chrF"] = CHRF().corpus_score(list(replies), references).score
    return {name: value / 100 for name, value in scores.items()}


BENCHMARK = Benchmark(
    name="xlrs-caption",
    title="XLRS-Bench captioning",
    build_prompt=lambda row: str(row.get("question") or REQUEST),
    subtask_of=lambda row: str(row.get("category") or "detailed captioning"),
    read_reply=lambda row, reply: None,
    grade=rouge_l,
    chance=lambda row: 0.0,
    max_new_tokens=1024,
    columns={"question_id": "index", "caption": "answer"},
    how_to="rows need a caption (or answer), the description that a reply is compared with; "
    "geollava scenes writes none",
    more=corpus_scores,
)
