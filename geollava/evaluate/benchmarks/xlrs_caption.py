"""XLRS-Bench detailed captioning (arXiv 2503.23771): a description of the whole image.

Rows have `index`, `image` and `answer` (or `caption`): the reference, or a list of them. The hub's
files, in English and in Chinese, are said by others who read them to hold such lists; they could
not be looked up here. A row may have a `question`; figures compare with published ones only where
it is the benchmark's own long prompt, which its authors publish with their evaluation.

A reply's credit is ROUGE-L (F1, stemmed, by rouge-score), of the reference that it is nearest to;
beside it stand BLEU-1 to BLEU-4 and chrF over all rows (by sacrebleu). Chinese is read by
characters, as sacrebleu's `zh` splits it: rouge-score's own words are Latin letters and digits
alone. No metric here needs Java or a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

from geollava.common.extras import install
from geollava.evaluate.benchmark import Benchmark, Row, get_field

REQUEST = (
    "Describe this remote sensing image in detail: first the area as a whole, then each of its "
    "nine parts from left to right and top to bottom, and at last what its zones, roads, water, "
    "vegetation and traffic tell about it. Write plain sentences without headings."
)
CHINESE = re.compile("[\u4e00-\u9fff]")


def rouge_l(row: Mapping[str, Any], reply: str) -> float:
    references = references_of(row)
    scorer = rouge_scorer(is_chinese(references))
    return float(scorer.score_multi(references, reply)["rougeL"].fmeasure)


def references_of(row: Mapping[str, Any]) -> list[str]:
    """The descriptions that a reply is compared with; empty ones of a list are none."""
    answer, choices = get_field(row, "answer"), "multi-choice options"
    found = [answer] if isinstance(answer, str) else answer
    texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
    found = [text for text in found if text.strip()] if texts else []
    if found and row.get(choices) is None:
        return found
    got = f"{answer!r} beside {choices!r}" if found else repr(answer)
    raise ValueError(f"row {row.get('index', '?')}: 'answer' must be a description, got {got}")


def is_chinese(references: Sequence[str]) -> bool:
    return any(CHINESE.search(text) for text in references)


class ChineseWords:
    """Words for rouge-score: each Chinese character is one."""

    def tokenize(self, text: str) -> list[str]:
        from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

        return str(TokenizerZh()(text.lower())).split()


@cache
def rouge_scorer(chinese: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ImportError(f"captions are scored by rouge-score: {install('evaluate')}") from error
    words = ChineseWords() if chinese else None
    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=words)


def corpus_scores(
    rows: Sequence[Row], replies: Sequence[str], credit: Sequence[float]
) -> dict[str, float]:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ModuleNotFoundError as error:
        raise ImportError(f"captions are scored by sacrebleu: {install('evaluate')}") from error
    by_row = [references_of(row) for row in rows]
    references = [list(column) for column in zip_longest(*by_row)]  # sacrebleu knows None as none
    words = "zh" if any(map(is_chinese, by_row)) else "13a"
    scores = {
        f"BLEU-{order}": BLEU(max_ngram_order=order, tokenize=words)
        .corpus_score(list(replies), references)
        .score
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
