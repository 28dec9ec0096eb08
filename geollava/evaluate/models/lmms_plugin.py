"""The model within lmms-eval.

    lmms_eval --model geollava --model_args pretrained=DIR --tasks xlrs-lite --batch_size 8

It finds `manifest` by the entry point group `lmms_eval.models`; the class that this names is in
lmms_model.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from geollava.evaluate.models.answerer import Answerer
from geollava.imagery import as_scene, to_rgb

DEFAULT_LENGTH = 128  # new tokens, where the task says nothing


@dataclass(frozen=True)
class Request:
    """One question of a task: its images, as the task gives them, and the limit of the reply."""

    prompt: str
    images: list[Any]
    max_new_tokens: int

    def key(self) -> tuple[str, ...]:
        """Equal for requests that a model can answer in one batch."""
        digests = [hashlib.sha256(np.asarray(image).data).hexdigest() for image in self.images]
        return (str(self.max_new_tokens), *digests)


def manifest() -> Any:
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "geollava", simple_class_path="geollava.evaluate.models.lmms_model.GeoLlava"
    )


def answer_in_order(
    answerer: Answerer, requests: Iterable[Request], batch_size: int
) -> Iterator[str]:
    """The reply to each request; those in a row about the same images see them once."""
    seen, seen_key = None, None
    for key, batch in batches(requests, batch_size):
        if key != seen_key:
            seen = answerer.see([as_scene(image) for image in batch[0].images])
            seen_key = key
        assert seen is not None
        limit = batch[0].max_new_tokens
        prepared = [answerer.prepare(seen, request.prompt, limit) for request in batch]
        yield from (reply.text for reply in answerer.ask(seen, prepared, limit))


def batches(
    requests: Iterable[Request], size: int
) -> Iterator[tuple[tuple[str, ...], list[Request]]]:
    """Requests in a row that have one key, at most `size` at a time."""
    batch: list[Request] = []
    batch_key: tuple[str, ...] = ()
    for request in requests:
        key = request.key()
        if batch and (key != batch_key or len(batch) == size):
            yield batch_key, batch
            batch = []
        batch, batch_key = [*batch, request], key
    if batch:
        yield batch_key, batch


def request_of(context: str, images: Iterable[Any], generation: Mapping[str, Any]) -> Request:
    """A task's words, images and generation settings as a request.

    Raises:
        NotImplementedError: settings that are not greedy.
    """
    for name, greedy in (("do_sample", False), ("temperature", 0), ("num_beams", 1)):
        if generation.get(name) not in (None, greedy):
            raise NotImplementedError(
                f"geollava answers greedily, a task with {name} = {generation[name]} is not "
                "supported"
            )
    limit = int(generation.get("max_new_tokens", DEFAULT_LENGTH))
    return Request(context, [to_rgb(image) for image in images], limit)
