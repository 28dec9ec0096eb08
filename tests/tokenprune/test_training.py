"""Labels beside logits that have lost columns: by hand, and in `transformers.Trainer`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tokenprune

from .hosts import IMAGE, PAD, Host
from .test_apply import build

ROWS = [[[3, 0, 9]], [[8, 0, 5]], [[6, 0, 2, 0, 4]], [[2, 0, 9]]]


def example(host: Host, rows: list[list[int]]) -> dict[str, Any]:
    inputs = host.inputs(rows, pad_left=False)
    ids = inputs["input_ids"]
    return {**inputs, "labels": ids.masked_fill((ids == IMAGE) | (ids == PAD), -100)}


def by_hand(logits: Tensor, labels: Tensor) -> tuple[float, int, int]:
    """(sum of losses, tokens that are right, tokens)."""
    logits, labels = logits[:, :-1], labels[:, 1:]
    told = labels != -100
    loss = nn.functional.cross_entropy(logits[told], labels[told], reduction="sum")
    right = int((logits.argmax(-1) == labels)[told].sum())
    return float(loss), right, int(told.sum())


@pytest.mark.parametrize("method", ["divprune", "spatial_pool", "fastv"])
@pytest.mark.parametrize("pad_left", [True, False])
def test_aligned_labels_give_the_models_own_loss(method, pad_left):
    host = build("llava")
    inputs = host.inputs([[3, 0, 9], [8, 0, 5, 0], [6]], pad_left=pad_left)
    ids = inputs["input_ids"]
    labels = ids.masked_fill((ids == IMAGE) | (ids == PAD), -100)
    options = {"layer": 1} if method == "fastv" else {}
    with (
        tokenprune.apply(
            host.model, tokenprune.get_method(method, **options), num_keep=5
        ) as handle,
        torch.no_grad(),
    ):
        output = host.model(**inputs, labels=labels)
        aligned = handle.align(labels)
        total, _, count = by_hand(output.logits, aligned)
        assert output.loss.item() == pytest.approx(total / count, rel=1e-5)
        for row, kept in enumerate(handle.kept_positions):
            told = aligned[row][aligned[row] != -100]
            assert torch.equal(told, labels[row, kept][labels[row, kept] != -100])
        with pytest.raises(ValueError, match=r"labels must be \[3, \d+\], as the prompt was, got"):
            handle.align(labels[:, 1:])
        text = host.inputs([[3], [2]])
        host.model(**text)
        assert handle.align(text["input_ids"]) is text["input_ids"]


class Trainer(tokenprune.AlignedLabels, transformers.Trainer):
    pass


def metrics(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions
    logits = torch.tensor(logits[0] if isinstance(logits, tuple) else logits)
    total, right, count = by_hand(logits, torch.tensor(prediction.label_ids))
    return {"right": right, "count": count, "nll": total / count}


def trainer_of(host: Host, folder: Any, **options: Any) -> Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        **options,
    )
    examples = [example(host, rows) for rows in ROWS]
    return Trainer(
        model=host.model,
        args=arguments,
        eval_dataset=examples,
        data_collator=lambda batch: batch[0],
        compute_metrics=metrics,
    )


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_metrics_of_the_trainer_are_those_by_hand(method, tmp_path):
    host = build("llava")
    options = {"layer": 1} if method == "fastv" else {}
    reduction = tokenprune.get_method(method, **options)
    with tokenprune.apply(host.model, reduction, num_keep=5) as handle:
        trainer = trainer_of(host, tmp_path)
        trainer.reduction = handle
        # transformers does not leave all of these out by itself.
        left_out = ["past_key_values", "cache", "image_hidden_states", "image_outputs"]
        found = trainer.evaluate(ignore_keys=left_out)
        total, right, count = 0.0, 0, 0
        for rows in ROWS:
            given = example(host, rows)
            with torch.no_grad():
                logits = host.model(**given).logits  # labels say where answers begin
            kept = handle.kept_positions[0]
            more = by_hand(logits, given["labels"][:, kept])
            total, right, count = total + more[0], right + more[1], count + more[2]
    assert found["eval_count"] == count
    assert found["eval_right"] == right
    assert found["eval_nll"] == pytest.approx(total / count, rel=1e-5)


def test_label_smoothing_and_loss_functions_get_aligned_labels(tmp_path):
    host = build("llava")
    given = example(host, ROWS[2])
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        seen.append((outputs.logits, labels))
        return outputs.logits.sum()

    with tokenprune.apply(host.model, "divprune", num_keep=5) as handle, torch.no_grad():
        trainer = trainer_of(host, tmp_path, label_smoothing_factor=0.2)
        trainer.reduction = handle
        smoothed = trainer.compute_loss(host.model, dict(given))
        short = {name: value for name, value in given.items() if name != "labels"}
        logits = host.model(**short).logits
        labels = given["labels"][:, handle.kept_positions[0]]
        assert torch.equal(smoothed, trainer.label_smoother({"logits": logits}, labels))
        trainer.compute_loss_func = loss
        trainer.compute_loss(host.model, dict(given))
        assert trainer.compute_loss_func is loss
    assert torch.equal(seen[0][1], labels)
    assert seen[0][0].shape[1] == labels.shape[1]
