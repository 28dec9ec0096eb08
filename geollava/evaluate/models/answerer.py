"""What an evaluation needs of a model: to see images once, and to answer prompts in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from geollava.answering import generating
from geollava.answering.overlay import LONGEST_SIDE
from geollava.imagery import Scene, resized


@dataclass(frozen=True)
class Reply(generating.Reply):
    """A model's words.

    Attributes:
        dropped: visual tokens that this question alone went without, in an ablation.
    """

    dropped: int | None = None


@dataclass
class Seen:
    """What a model keeps of some images while it is asked about them.

    Attributes:
        crops, tokens_before, tokens_after: of all the images; None where the model does not tell.
        content: the model's own.
    """

    content: Any
    crops: int | None = None
    tokens_before: int | None = None
    tokens_after: int | None = None


class Answerer(ABC):
    """A model with its processor.

    Attributes:
        weights: a digest of the checkpoint's.
    """

    model: Any
    tokenizer: Any
    weights: str = ""

    @abstractmethod
    def see(self, scenes: Sequence[Scene]) -> Seen:
        """Encodes the images once, before any question. No images means a blind run."""

    @abstractmethod
    def prepare(self, seen: Seen, prompt: str, max_new_tokens: int) -> Any:
        """A prompt in the form that `ask` takes. ValueError for one that the model cannot take."""

    @abstractmethod
    def ask(self, seen: Seen, prepared: list[Any], max_new_tokens: int) -> list[Reply]:
        """The most likely reply to each prompt, all in one batch."""

    @abstractmethod
    def reduce(self, method: str | None, num_keep: int | None) -> None:
        """Chooses how visual tokens are reduced from now on; None is as the model does."""

    def overlay(self, scene: Scene) -> Image.Image:
        """The image with what is kept of it drawn over it, where the model knows."""
        share = min(1.0, LONGEST_SIDE / max(scene.size))
        width, height = (max(1, round(side * share)) for side in scene.size)
        return resized(scene, (width, height))

    @abstractmethod
    def protocol(self, *, blind: bool) -> dict[str, Any]:
        """What a result must say of the model, and of the prompt around the question."""
