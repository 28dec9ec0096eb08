"""What tests of evaluations share: a model that says what it is told, and its results."""

from __future__ import annotations

import json
import os

from geollava.evaluate.benchmark import get_benchmark
from geollava.evaluate.evaluation import evaluate
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.evaluate.rows import Data
from geollava.evaluate.runner import Options
from tests.geollava.conftest import noise

XLRS = get_benchmark("xlrs")


class Parrot(Answerer):
    """Gives to each question the reply that it is told; 8 questions in a batch."""

    def __init__(self, replies):
        self.replies, self.asked, self.seen = replies, 0, 0

    def reduce(self, method, num_keep):
        raise AssertionError("not reduced here")

    def see(self, scenes):
        self.seen += 1
        return Seen([scene.size for scene in scenes], crops=1, tokens_before=576, tokens_after=24)

    def prepare(self, seen, prompt, max_new_tokens):
        return prompt

    def ask(self, seen, prepared, max_new_tokens):
        self.asked += len(prepared)
        return [Reply(self.replies(prompt), 0.5) for prompt in prepared]

    def protocol(self, *, blind):
        return {"model": "parrot", "method": None}


def some_letter(prompt):
    return "ABCD"[sum(prompt.encode()) % 4]


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]


def contents(folder):
    """Everything that a run leaves but what it took."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("seconds")
    return (folder / "predictions.jsonl").read_bytes(), results, sorted(os.listdir(folder))


def replied(name, rows, replies, folder, **options):
    """Replies in the order of the rows -> (results, lines of predictions)."""
    noise(40, 40).save(folder / "a.png")
    (folder / "d.json").write_text(json.dumps(rows))
    benchmark = get_benchmark(name)
    data = Data(benchmark, str(folder / "d.json"))
    left = iter(replies)
    results = evaluate(data, Parrot(lambda prompt: next(left)), folder / "o", Options(**options))
    return results, lines_of(folder / "o")
