"""A scene -> the visual tokens that the model keeps of it, whatever is asked about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geollava.answering.measures import Stopwatch
from geollava.answering.streaming import ahead, crops_within, in_chunks
from geollava.imagery import Canvas, Georeference, Scene, TokenMap
from geollava.model.modeling import GeoLlavaForConditionalGeneration
from geollava.model.processing import GeoLlavaProcessor
from geollava.model.token_reduction import ReducedTokens


@dataclass(frozen=True)
class SceneTokens:
    """What the model keeps of a scene.

    Attributes:
        kept: of the canvas's crops, row by row.
        canvas: that the scene was fitted to.
        georeference: of the scene, where it has one.
        shown: [C, K] bool, the kept tokens that the language model reads; None is all of them.
    """

    kept: ReducedTokens
    canvas: Canvas
    georeference: Georeference | None = None
    shown: Tensor | None = None

    @property
    def before(self) -> int:
        """Tokens of all crops."""
        return self.kept.assignment.numel()

    @property
    def after(self) -> int:
        """Tokens that the language model reads, empty slots too."""
        return self.kept.keep_indices.numel() if self.shown is None else int(self.shown.sum())

    @property
    def map(self) -> TokenMap:
        assert self.kept.grid_size is not None
        return TokenMap(self.canvas, self.kept.grid_size, self.georeference)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        kept = self.kept
        held = (kept.features, kept.keep_indices, kept.valid, kept.assignment, kept.scores)
        return sum(tensor.nbytes for tensor in held)

    def project(self, model: GeoLlavaForConditionalGeneration) -> Tensor:
        """[T, text width]: the tokens as the language model reads them."""
        features = model.project(self.kept.features)
        return features if self.shown is None else features[self.shown.flatten()]


@torch.no_grad()
def encode_scene(
    model: GeoLlavaForConditionalGeneration,
    processor: GeoLlavaProcessor,
    scene: Scene,
    canvas: Canvas | None = None,
    *,
    memory_budget: int | None = None,
    stopwatch: Stopwatch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SceneTokens:
    """Reads, cuts, encodes and reduces a scene, a chunk of crops at a time.

    While a chunk is encoded the next is read; of each only the kept tokens stay.

    Args:
        canvas: that the scene is fitted to; None is the processor's choice.
        memory_budget: bytes that encoding may take beside the weights. Without one the model's
            `chunk_size` crops are encoded at a time; on a CPU never more, which would be slower.
        stopwatch: is given the stages "crop" (waiting for crops) and "encode" (tower and token
            reduction).
        progress: called with (crops done, crops in all) after every chunk.

    Raises:
        ValueError: a budget that does not hold one crop; vision tokens that are not finite; a
            damaged file.
    """
    stopwatch = stopwatch or Stopwatch()
    images = processor.image_processor
    canvas = canvas or images.choose_canvas(scene.size)
    size = model.chunk_size
    if memory_budget is not None:
        within = crops_within(memory_budget, model.config, model.dtype)
        size = min(size, within) if model.device.type == "cpu" else within
    rows = images.crop_rows(scene, canvas)
    chunks = ahead(in_chunks(rows, size, pin=model.device.type == "cuda"))
    total = canvas.crops
    report = (lambda done: progress(done, total)) if progress else None
    with stopwatch.stage("encode"):
        kept = model.encode_crops(stopwatch.waits("crop", chunks), progress=report)
    return SceneTokens(kept, canvas, scene.georeference)
