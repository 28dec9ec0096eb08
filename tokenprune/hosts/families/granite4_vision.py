"""Granite 4 Vision: LLaVA-NeXT's layout, its crops shrunk; features are added in several layers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from tokenprune.hosts.compat import require_parameters
from tokenprune.hosts.families.llava_next import LlavaNext
from tokenprune.method import OF_TOWER, Method


class Granite4Vision(LlavaNext):
    """Granite 4 Vision.

    A budget counts for an image, and is dealt to its overview and its mosaic of crops in proportion
    to their tokens; newline tokens show nothing and go first. Zeros stand at the placeholders:
    methods see the features of the first layer that adds some.
    """

    model_types: ClassVar[tuple[str, ...]] = ("granite4_vision",)

    def check(self) -> None:
        super().check()
        require_parameters(self.language_model.forward, "vision_mask", "deepstack_features")

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"features", "text"})

    def why_not(self, method: Method) -> str | None:
        if method.in_layers or any(name in OF_TOWER for name in method.needs):
            return "is refused: the tower is read, and features are added, in several layers"
        return None

    @property
    def knows_crops(self) -> bool:
        return False

    def features(self, output: Any) -> Any:
        by_layer = dict(output.deepstack_features)
        return by_layer[min(by_layer)]

    def known(self, given: dict[str, Any]) -> dict[str, Any]:
        mask, by_layer = given.get("vision_mask"), given.get("deepstack_features")
        if mask is None or by_layer is None:
            return given
        return given | {
            "inputs_embeds": given["inputs_embeds"].masked_scatter(mask, by_layer[min(by_layer)]),
            "visual_pos_masks": mask[:, :, 0],
            "deepstack_visual_embeds": list(by_layer.values()),
            "vision_mask": None,
            "deepstack_features": dict.fromkeys(by_layer),
        }

    def own(self, known: dict[str, Any]) -> dict[str, Any]:
        given = dict(known)
        mask = given.pop("visual_pos_masks")[:, :, None]
        features = given.pop("deepstack_visual_embeds")
        return given | {
            "inputs_embeds": given["inputs_embeds"].masked_fill(mask, 0),
            "vision_mask": mask,
            "deepstack_features": dict(zip(given["deepstack_features"], features, strict=True)),
        }

    @property
    def crop_side(self) -> int:
        return int(super().crop_side * Fraction(self.config.downsample_rate))

    def pack(self, crops: Tensor, size: Any, newline: Tensor | None) -> Tensor:
        strategy = self.config.vision_feature_select_strategy
        packed = self.model.pack_image_features([crops], [size], strategy, newline)
        # Older releases give lengths besides.
        return packed[0][0] if isinstance(packed, tuple) else packed[0]
