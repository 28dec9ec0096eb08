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
from geollava.model.configuration import NO_REDUCTION
from geollava.model.token_reduction import check_method, crop_methods, host_methods


class GeoLlavaAnswerer(Answerer):
    """Our model. Images are encoded once, and what their questions share is read once."""

    def __init__(self, name: str, session: Session) -> None:
        self.name, self.session = name, session
        self.model, self.processor = session.model, session.processor
        self.tokenizer = self.processor.tokenizer
        self.own_max_crops = self.processor.image_processor.max_crops
        self.reduce(None, None)

    def reduce(self, method: str | None, num_keep: int | None) -> None:
        config, own = self.model.config, self.session.own
        method = method or own.method
        if method == controls.SMALLER_IMAGE and config.image_grid_pinpoints is not None:
            raise NotImplementedError(f"{method} needs a model without a list of canvases")
        if method not in controls.NAMES:
            if method not in host_methods():
                check_method(method, also=(*controls.NAMES, *host_methods()))
            if num_keep is None and method in crop_methods() and method != NO_REDUCTION:
                num_keep = own.num_keep
            self.session.reduce(method, num_keep)
            chosen = self.session.reduction
            self.method = method
            self.num_keep = chosen.asked_keep or chosen.num_keep
            return
        self.method, self.num_keep = method, num_keep or own.num_keep
        whole = config.tokens_per_crop
        self.session.reduce("uniform", self.num_keep)  # it must be a number that a crop has
        self.session.reduce(*controls.method_of(method, self.num_keep, whole))
        self.share = self.num_keep / whole

    def see(self, scenes: Sequence[Scene]) -> Seen:
        tokens = [self.encode(scene) for scene in scenes]
        asked = self.session.reduction.asked_method is not None
        return Seen(
            content=self.session.hold(tokens),
            crops=sum(part.canvas.crops for part in tokens),
            tokens_before=sum(part.before for part in tokens),
            # A method that needs the question has not chosen yet.
            tokens_after=None if asked else sum(part.after for part in tokens),
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
        if self.method not in controls.PRUNED:
            return tokens
        return replace(tokens, shown=controls.remaining(self.method, tokens.kept, self.num_keep))

    def overlay(self, scene: Scene) -> Image.Image:
        return overlay.draw(scene, self.encode(scene))

    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Tensor:
        """[L] token ids."""
        return seen.content.prepare(prompt, max_new_tokens)

    def ask(self, seen: Seen, prepared: list[Tensor], max_new_tokens: int) -> list[Reply]:
        return [
            Reply(reply.text, reply.confidence, reply.tokens)
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
            "tokens_per_crop": self.session.reduction.num_keep,
            "crop_size": config.vision_config.image_size,
            "max_crops": self.own_max_crops,
            "resize": self.processor.image_processor.resize,
            "attention": self.model.config._attn_implementation,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
