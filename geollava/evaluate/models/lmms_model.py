"""The class that lmms-eval makes; see lmms_plugin.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmms_eval.api.model import lmms
from tqdm import tqdm

from geollava.evaluate.models.lmms_plugin import Request, answer_in_order, request_of
from geollava.evaluate.models.opening import open_model


class GeoLlava(lmms):
    """Our model, or any of transformers, as `geollava evaluate` asks it.

    Args:
        pretrained: checkpoint, a folder or a hub name.
        method, num_keep: of token reduction; the model's own by default.
        attention: of transformers: sdpa, eager, flash_attention_2.
        blind: ask without the images.
        batch_size: questions about the same images at a time.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        num_keep: int | None = None,
        attention: str | None = None,
        blind: bool = False,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        kwargs.pop("max_batch_size", None)
        if kwargs:
            raise TypeError(f"the model geollava does not take {', '.join(sorted(kwargs))}")
        self.answerer = open_model(pretrained, method, num_keep, device or "auto", dtype, attention)
        self.blind, self.batch_size = blind, int(batch_size)

    @property
    def device(self) -> Any:
        return self.answerer.model.device

    def generate_until(self, requests: list[Any]) -> list[str]:
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="geollava")
        replies = []
        for reply in answer_in_order(self.answerer, self.read(requests), self.batch_size):
            replies.append(reply)
            bar.update()
        bar.close()
        return replies

    def read(self, instances: list[Any]) -> Iterator[Request]:
        """Images are read as they are needed."""
        for instance in instances:
            context, generation, doc_to_visual, doc_id, task, split = instance.args
            images = [] if self.blind else doc_to_visual(self.task_dict[task][split][doc_id])
            yield request_of(context, images, generation)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("geollava generates, tasks of likelihoods are not supported")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("geollava answers one question at a time, rounds are missing")
