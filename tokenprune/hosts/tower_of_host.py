"""What an adapter says of its host's vision tower: what methods are handed beside features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenprune.hosts.layout import ImageLayout

PROJECTIONS = {"keys": "k_proj", "queries": "q_proj"}  # what towers call them
# One number per patch, read of a layer's queries and keys on their way to the softmax.
OF_ATTENTION = ("attention", "received", "cls_logits", "single_head_attention")


class TowerOfHost(ABC):
    """The part of an `Adapter` that knows the vision tower.

    Attributes:
        unit: what a budget counts for, and `report` lists: "image", or "crop" where the host does
            not say which crops are one image's.
    """

    unit: ClassVar[str] = "image"
    model: Any
    config: Any

    @abstractmethod
    def layout(self, size: Any) -> ImageLayout:
        """The layout of an image of that size; hosts of one size ignore it."""

    @property
    def knows_crops(self) -> bool:
        """Whether its layouts say which of the tower's crops are one image's."""
        return self.unit == "image"

    @property
    def offers(self) -> frozenset[str]:
        """The fields of `VisionTokens` that methods are handed; one that needs more is refused.

        "text" is the prompt's other words, as the language model embeds them. By default the rest
        is what the tower has: "attention", "received" and "hidden_states" where it is a list of
        layers, "cls_logits" and "single_head_attention" where it has a class token, "keys" and
        "queries" where a layer has projections that `projection` knows. An adapter that maps
        attention alone, by a `token_attention` of its own, offers nothing but attention.
        """
        offered = {"features", "text"}
        try:
            attention = self_attention_of(tower_layers(self.vision_tower)[-1])
        except (AttributeError, NotImplementedError):  # no tower, or layers that are not known
            return frozenset(offered)
        offered |= {"attention", "received"}
        if self.num_prefix_tokens:
            offered |= {"cls_logits", "single_head_attention"}
        own = type(self)
        maps_vectors = own.token_values is not TowerOfHost.token_values
        if maps_vectors or own.token_attention is TowerOfHost.token_attention:
            offered.add("hidden_states")
            offered |= {name for name in PROJECTIONS if self.projection(attention, name)}
        return frozenset(offered)

    @property
    def offers_by_crop(self) -> frozenset[str]:
        """The same for methods `by_crop`; crops have a class token each, where it is projected."""
        has_class_token = self.projects and self.num_prefix_tokens > 0
        return self.offers | ({"cls"} if has_class_token else set())

    @property
    def merging_layers(self) -> list[nn.Module]:
        """The tower's layers in which tokens may merge, see `merging_tower`: those up to the one
        whose output is the features; none where a token would then be of no patch of its own.
        """
        return []

    @property
    def projects(self) -> bool:
        """Whether what projects patches takes a row by itself, see `project`."""
        return False

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.vision_tower

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of the tower that are no patches: 1 with a class token."""
        names = [name.rsplit(".", 1)[-1] for name, _ in self.vision_tower.named_parameters()]
        return int("class_embedding" in names or "cls_token" in names)

    @property
    def attention_layer(self) -> nn.Module:
        """The tower's self-attention whose output becomes the features."""
        layers = tower_layers(self.vision_tower)
        feature_layer = getattr(self.config, "vision_feature_layer", -1)
        return self_attention_of(layer_before(layers, feature_layer))

    def projection(
        self, attention: Any, name: str
    ) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        """Where the keys or queries of one of the tower's attention layers are computed.

        Args:
            attention: the layer's self-attention.
            name: "keys" or "queries".

        Returns:
            (the projection, which part of its output they are [.., heads * head_dim]); None where
            there is none that is known.
        """
        found = getattr(attention, PROJECTIONS[name], None)
        return None if found is None else (found, lambda output: output)

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        """From patches to visual tokens: the mean over the patches that make a token.

        Where a token is one patch, that is the patch's own value.

        Args:
            values: [crops, patches, D], without prefix tokens; towers of variable size give
                [1, all patches of all images, D].
            sizes: one entry per image.

        Returns:
            For each image [tokens in its grids, D], in the order of the features.
        """
        (grid,) = self.layout(None).grids
        return list(pool_patches(values, grid.rows, grid.cols))

    def token_attention(self, received: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        """`token_values` of one number per patch: [crops, patches] -> each image's [tokens]."""
        return [image[:, 0] for image in self.token_values(received[:, :, None], sizes)]

    def crop_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        """As `token_values`, of each image [crops, patches, D], those included that it cuts away.

        An image is one crop, unless the adapter says otherwise; the patches are its tokens.
        """
        return [image[None] for image in self.token_values(values, sizes)]

    def projected_states(self, output: Any, arguments: Mapping[str, Any]) -> Tensor:
        """[crops, prefix tokens + patches, D']: what the projector takes, the class token's too.

        Args:
            output: of `get_image_features`.
            arguments: of `get_image_features`.
        """
        chosen = arguments.get("vision_feature_layer")
        chosen = self.config.vision_feature_layer if chosen is None else chosen
        layers = [chosen] if isinstance(chosen, int) else chosen
        return torch.cat([output.hidden_states[layer] for layer in layers], dim=-1)

    def project(self, rows: Tensor) -> Tensor:
        """[.., D'] -> [.., D], into the space of the features; where the host `projects`."""
        projected: Tensor = self.model.multi_modal_projector(rows)
        return projected

    def class_tokens(self, output: Any, arguments: Mapping[str, Any]) -> Tensor:
        """[crops, D]: each crop's class token, in the space of the features.

        Only where the host `projects`, and its tower has one.
        """
        return self.project(self.projected_states(output, arguments)[:, 0])


def pool_patches(values: Tensor, rows: int, cols: int) -> Tensor:
    """[crops, patches, D] of a square grid -> [crops, rows * cols, D] means over equal windows.

    Raises:
        ValueError: the patches are no square, or windows would not be equal.
    """
    side = round(values.shape[1] ** 0.5)
    if side * side != values.shape[1] or side % rows or side % cols:
        raise ValueError(
            f"{rows} x {cols} tokens must be equal windows of a square of patches, "
            f"got {values.shape[1]} patches"
        )
    windows = values.unflatten(1, (rows, side // rows, cols, side // cols))
    return windows.mean((2, 4)).flatten(1, 2)


def tower_layers(tower: nn.Module) -> nn.ModuleList:
    """The tower's list of transformer layers, whatever it calls it.

    Raises:
        NotImplementedError: it has none.
    """
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith(("layers", "layer", "blocks")):
            return module
    raise NotImplementedError(f"{type(tower).__name__} has no list of layers that is known")


def self_attention_of(layer: nn.Module) -> nn.Module:
    """The self-attention of one of the tower's layers.

    Raises:
        NotImplementedError: it has none.
    """
    for name, module in layer.named_children():
        if name in ("self_attn", "attention", "attn"):
            return module
    raise NotImplementedError(f"{type(layer).__name__} has no self-attention that is known")


def layer_before(layers: nn.ModuleList, feature_layer: int | Sequence[int]) -> nn.Module:
    """The layer whose output is hidden_states[feature_layer]; of several the last."""
    # hidden_states[0] is the embedding, hidden_states[i] the output of layer i - 1.
    wanted = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    return layers[max(index - 1 if index >= 0 else len(layers) + index for index in wanted)]
