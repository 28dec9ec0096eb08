"""Adapter: where one family of transformers models takes its visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.compat import ENCODER_OUTPUTS, image_features, require
from tokenprune.hosts.tower_of_host import TowerOfHost
from tokenprune.hosts.videos import IMAGE, VIDEO, Modality, Videos
from tokenprune.method import Method


class Adapter(TowerOfHost):
    """What `apply` asks of a host. One subclass, one file in `tokenprune/hosts/families/`.

    The host is a transformers model that computes image features in `get_image_features`, puts
    them in the place of placeholder tokens, and calls a language model with the embeddings. Other
    packages add theirs by an entry point in the group `tokenprune.adapters`.

    Attributes:
        model_types: the `config.model_type` of the hosts it knows.
        conversation_state: attributes of the model in which its own forwards leave what the next
            turn needs; they stay when all is undone.
        positions_need_grid: positions have several axes, which the host computes from the images.
    """

    model_types: ClassVar[tuple[str, ...]]
    conversation_state: ClassVar[tuple[str, ...]] = ()
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
