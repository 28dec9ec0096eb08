"""Our model as an evaluation asks it: a `Session`, and the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor

from geollava.answering import overlay
from geollava.answering.encoding import SceneTokens
from geollava.answering.session import Session
from geollava.evaluate.models import controls
from geollava.evaluate.models.answerer import Answerer, Reply, Seen
from geollava.imagery import Scene
from geollava.model.configuration import GeoLlavaConfig
from geollava.model.token_reduction import check_method


class GeoLlavaAnswerer(Answerer):
    """Our model. Images are encoded once, and what their questions share is read once."""

    def __init__(self, name: str, session: Session) -> None:
        self.name, self.session = name, session
        self.model, self.processor = session.model, session.processor
        self.tokenizer = self.processor.tokenizer
        self.own = session.reduction
        self.own_max_crops = self.processor.image_processor.max_crops
        self.reduce(None, None)

    def reduce(self, method: str | None, num_keep: int | None) -> None:
        config: GeoLlavaConfig = self.model.config
        method, num_keep = method or self.own[0], num_keep or self.own[1]
        if method == controls.SMALLER_IMAGE and config.image_grid_pinpoints is not None:
            raise NotImplementedError(f"{method} needs a model without a list of canvases")
        config.num_keep = num_keep
        config.check()
        whole = config.grid_size[0] * config.grid_size[1]
        used, config.num_keep = controls.method_of(method, num_keep, whole)
        check_method(used, also=controls.NAMES)
        self.method, self.num_keep = method, num_keep
        self.share = num_keep / whole
        config.reduction_method, self.processor.num_keep = used, config.num_keep

    def see(self, scenes: Sequence[Scene]) -> Seen:
        return self.seen_of([self.encode(scene) for scene in scenes])

    def seen_of(self, tokens: list[SceneTokens]) -> Seen:
        return Seen(
            content=self.session.hold(tokens),
            crops=sum(part.canvas.crops for part in tokens),
            tokens_before=sum(part.before for part in tokens),
            tokens_after=sum(part.after for part in tokens),
        )

    def encode(self, scene: Scene) -> SceneTokens:
        images = self.processor.image_processor
        canvas = images.choose_canvas(scene.size)
        if self.method == controls.SMALLER_IMAGE:
            # One crop alone is no canvas.
            images.max_crops = max(2, int(canvas.crops * self.share))
            try:
                canvas = images.choose_canvas(scene.size)
            finally:
                images.max_crops = self.own_max_crops
        tokens = self.session.encode(scene, canvas=canvas)
        shown = controls.remaining(self.method, tokens.kept, self.num_keep)
        return replace(tokens, shown=shown)

    def overlay(self, scene: Scene) -> Image.Image:
        return overlay.draw(scene, self.encode(scene))

    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Tensor:
        """[L] token ids."""
        return seen.content.prepare(prompt, max_new_tokens)

    def ask(self, seen: Seen, prepared: list[Tensor], max_new_tokens: int) -> list[Reply]:
        return [
            Reply(reply.text, reply.confidence)
            for reply in seen.content.reply(prepared, max_new_tokens)
        ]

    def protocol(self, *, blind: bool) -> dict[str, Any]:
        config = self.model.config
        return {
            "model": self.name,
            "weights": self.weights,
            "architecture": config.model_type,
            "untrained": config.untrained,
            "prompt": self.processor.build_prompt("{question}", num_images=not blind),
            "method": self.method,
            "num_keep": self.num_keep,
            "tokens_per_crop": config.num_keep,
            "crop_size": config.vision_config.image_size,
            "max_crops": self.own_max_crops,
            "resize": self.processor.image_processor.resize,
            "attention": self.model.config._attn_implementation,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
