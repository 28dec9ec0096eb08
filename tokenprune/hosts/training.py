"""AlignedLabels: `transformers.Trainer` beside logits that have lost columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokenprune.hosts.handle import Handle


class AlignedLabels:
    """Mixed in before `transformers.Trainer`: labels lose the columns that the logits have lost.

    Example::

        class Trainer(tokenprune.AlignedLabels, transformers.Trainer): ...

        with tokenprune.apply(model, "divprune", keep_ratio=0.25) as handle:
            trainer = Trainer(model=model, args=args, compute_metrics=metrics, ...)
            trainer.reduction = handle
            trainer.evaluate()

    The model's own loss needs no help. Label smoothing, `compute_loss_func`, and the `label_ids` of
    `predict` and `compute_metrics` are computed outside of the model, and do.

    Attributes:
        reduction: the handle in force; None leaves labels alone.
    """

    reduction: Handle | None = None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        own: Any = self
        former = own.label_smoother, own.compute_loss_func
        if self.reduction is not None:
            own.label_smoother, own.compute_loss_func = map(self._aligning, former)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        finally:
            own.label_smoother, own.compute_loss_func = former

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(*args, **kwargs)  # type: ignore[misc]
        if isinstance(labels, tuple):
            labels = tuple(map(self._aligned, labels))
        return loss, logits, self._aligned(labels)

    def _aligned(self, labels: Any) -> Any:
        handle = self.reduction
        return handle.align(labels) if handle is not None and isinstance(labels, Tensor) else labels

    def _aligning(self, loss: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if loss is None:
            return None

        def aligned(outputs: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
            return loss(outputs, self._aligned(labels), *args, **kwargs)

        return aligned
