"""Adapter: where one family of transformers models takes its visual tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.compat import ENCODER_OUTPUTS, image_features, require
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.videos import IMAGE, VIDEO, Modality, Videos
from tokenprune.method import Method

PROJECTIONS = {"keys": "k_proj", "queries": "q_proj"}  # what towers call them


class Adapter(ABC):
    """What `apply` asks of a host. One subclass, one file in `tokenprune/hosts/families/`.

    The host is a transformers model that computes image features in `get_image_features`, puts
    them in the place of placeholder tokens, and calls a language model with the embeddings. Other
    packages add theirs by an entry point in the group `tokenprune.adapters`.

    Attributes:
        model_types: the `config.model_type` of the hosts it knows.
        conversation_state: attributes of the model in which its own forwards leave what the next
            turn needs; they stay when all is undone.
        unit: what a budget counts for, and `report` lists: "image", or "crop" where the host does
            not say which crops are one image's.
        positions_need_grid: positions have several axes, which the host computes from the images.
    """

    model_types: ClassVar[tuple[str, ...]]
    conversation_state: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "image"
    positions_need_grid: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model  # what `host_of` gave: it has get_image_features
        self.config: Any = model.config

    @classmethod
    def host_of(cls, model: nn.Module) -> nn.Module:
        """The module that encodes images and calls the language model.

        By default the model without its head; itself where the head is part of the host.
        """
        return getattr(model, "base_model", model)

    def why_not(self, method: Method) -> str | None:
        """Why this host cannot serve a method that others can, as in "needs a grid", or None."""
        return None

    def why_not_compact(self) -> str | None:
        """Why positions cannot be closed up in this host, or None."""
        return None

    def check(self) -> None:
        """Raises unless transformers is as this family's file assumes; called at entry.

        What every host assumes is checked in `tokenprune.hosts.compat`, whose `require`,
        `require_attributes` and `require_parameters` serve here too.

        Raises:
            NotImplementedError: it is not; the message names the version and the assumption.
        """
        require(
            hasattr(self, "language_model"),
            f"{type(self.model).__name__} must have the language model that "
            f"{type(self).__name__} looks for",
        )

    @property
    def language_model(self) -> nn.Module:
        return self.model.language_model

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The language model's layers, which run one after the other on [B, L, D]."""
        layers = getattr(self.language_model, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise NotImplementedError(
                f"{type(self.language_model).__name__} has no list of layers, tokens cannot be "
                "removed between them"
            )
        return layers

    @property
    def image_token_id(self) -> int:
        return self.config.image_token_id

    @property
    def videos(self) -> Videos | None:
        """What it says of the host's videos; None: they are refused."""
        return None

    def sources(self) -> list[tuple[Modality, Adapter | Videos]]:
        """What the host encodes that can be reduced."""
        videos = self.videos
        return [(IMAGE, self), *([] if videos is None else [(VIDEO, videos)])]

    @property
    def token_id(self) -> int:
        """The placeholder of images, as `Videos.token_id` is that of videos."""
        return self.image_token_id

    def placeholders(self, ids: Tensor) -> Tensor:
        """[B, L] input_ids -> [B, L] bool, where visual tokens stand that can be reduced."""
        marks = ids == self.image_token_id
        return marks if self.videos is None else marks | (ids == self.videos.token_id)

    def encoded_before(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the host is given in place of pixels, under "image" and "video"."""
        outputs = arguments.get(ENCODER_OUTPUTS)
        return outputs if isinstance(outputs, Mapping) else {"image": outputs}

    def features(self, output: Any) -> Any:
        """What the host places of the output of its get_image_features: its `pooler_output`."""
        return image_features(output)

    def known(self, given: dict[str, Any]) -> dict[str, Any]:
        """The language model's arguments, by the names that the core knows.

        Features stand at the placeholders in `inputs_embeds`; those that layers add are in
        `deepstack_visual_embeds`, at `visual_pos_masks`.
        """
        return given

    def own(self, known: dict[str, Any]) -> dict[str, Any]:
        """What `known` gave, back by the language model's own names."""
        return known

    def per_image(self, features: Any, arguments: Mapping[str, Any]) -> Any:
        """Features with one entry per image, [tokens, D], where the host's are not so.

        Args:
            features: as `features` takes them.
            arguments: as for `sizes`.
        """
        return features

    def placed(self, features: Tensor) -> Tensor:
        """What the host puts at placeholders for `features` [P, D], but for a common scale."""
        return features

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        """One entry per image, as `layout` takes it.

        Args:
            arguments: of get_image_features, or of the host where images were encoded before.
            features: as `per_image` gives them.
            input_ids: [B, L], or None where images are encoded before the host is called.
        """
        return [None] * len(self.lengths(features))

    def sizes_in_prompts(self, sizes: Sequence[Any], num_images: Sequence[int]) -> Sequence[Any]:
        """`sizes` as `layout` takes them, of prompts that hold so many images each."""
        return sizes

    def lengths(self, features: Any) -> list[int]:
        """Tokens of each image, from what `per_image` gives: by default one entry per image."""
        return [len(feature) for feature in features]

    @abstractmethod
    def layout(self, size: Any) -> ImageLayout:
        """The layout of an image of that size; hosts of one size ignore it."""

    # -- what methods are handed beside features --------------------------------------------------

    @property
    def offers(self) -> frozenset[str]:
        """The fields of `VisionTokens` that methods are handed; one that needs more is refused.

        "text" is the prompt's other words, as the language model embeds them. By default the rest
        is what the tower has: "attention" and "hidden_states" where it is a list of layers, "keys"
        and "queries" where a layer has projections that `projection` knows. An adapter that maps
        attention alone, by a `token_attention` of its own, offers attention alone.
        """
        offered = {"features", "text"}
        try:
            attention = self_attention_of(tower_layers(self.vision_tower)[-1])
        except (AttributeError, NotImplementedError):  # no tower, or layers that are not known
            return frozenset(offered)
        offered.add("attention")
        own = type(self)
        maps_vectors = own.token_values is not Adapter.token_values
        if maps_vectors or own.token_attention is Adapter.token_attention:
            offered.add("hidden_states")
            offered |= {name for name in PROJECTIONS if self.projection(attention, name)}
        return frozenset(offered)

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

    def class_tokens(self, output: Any, arguments: Mapping[str, Any]) -> Tensor:
        """[images, D]: the class token's output of each image, in the space of the features.

        Only where `offers` has "cls": the image has one class token, and what projects patches
        takes a token by itself.

        Args:
            output: of `get_image_features`.
            arguments: of `get_image_features`.
        """
        raise NotImplementedError(f"{type(self).__name__} hands over no class token")


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
