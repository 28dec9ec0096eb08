"""Videos: what an adapter says of its host's videos, as it says it of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenprune.hosts.compat import image_features
from tokenprune.hosts.layout import ImageLayout


@dataclass(frozen=True)
class Modality:
    """How a host is given what it shows.

    Attributes:
        name: in messages, and among what was encoded before.
        pixels: the argument.
        encoder: the host's function that encodes it.
    """

    name: str
    pixels: str
    encoder: str


IMAGE = Modality("image", "pixel_values", "get_image_features")
VIDEO = Modality("video", "pixel_values_videos", "get_video_features")


class Videos(ABC):
    """The videos of a host, for its `Adapter.videos`. Members mean what those of `Adapter` do.

    A video's placeholders may stand in several runs, with text between its frames; all of them
    together are one video.
    """

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter

    @property
    def token_id(self) -> int:
        """The placeholder."""
        token: int = self.adapter.config.video_token_id
        return token

    @property
    def offers(self) -> frozenset[str]:
        """The fields of `VisionTokens` that methods are handed for videos."""
        return frozenset({"features", "text"})

    def features(self, output: Any) -> Any:
        """What the host places of the output of its get_video_features: its `pooler_output`."""
        return image_features(output)

    def per_image(self, features: Any, arguments: Mapping[str, Any]) -> Any:
        """One entry per video, [tokens, D]."""
        return features

    def lengths(self, features: Any) -> list[int]:
        """Tokens of each video; some releases give them frame by frame, [frames, tokens, D]."""
        return [int(feature.shape[:-1].numel()) for feature in features]

    @abstractmethod
    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        """One entry per video, as `layout` takes it.

        Args:
            arguments: of get_video_features, or of the host where videos were encoded before.
        """

    @abstractmethod
    def layout(self, size: Any) -> ImageLayout:
        """The layout of a video of that size: its frames in order."""

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        raise NotImplementedError(f"{type(self).__name__} reads nothing of the tower")

    def token_attention(self, received: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        return [video[:, 0] for video in self.token_values(received[:, :, None], sizes)]

    def class_tokens(self, output: Any, arguments: Mapping[str, Any]) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} hands over no class token")
