"""How scenes are answered: what `geollava ask` and `geollava batch` can be told, in one record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from geollava.answering.memory import SESSION_MEMORY
from geollava.common.choices import Dtype, ExifMode, ResizeMode
from geollava.model.default_model import default_checkpoint

if TYPE_CHECKING:
    from geollava.answering.session import Session


@dataclass(frozen=True)
class Settings:
    """How each scene is answered.

    Attributes:
        model, num_keep, method, device, dtype, resize: see `Session`.
        memory_budget, session_memory: see there too.
        bands, exif, max_pixels: see `imagery.open_scene`.
        max_new_tokens: length limit of an answer.
    """

    model: str = str(default_checkpoint())
    num_keep: int | None = None
    method: str | None = None
    max_new_tokens: int = 128
    bands: tuple[int, ...] | None = None
    resize: ResizeMode = "pillow"
    exif: ExifMode = "stored"
    max_pixels: int | None = None
    memory_budget: str | None = None
    session_memory: str = SESSION_MEMORY
    device: str = "auto"
    dtype: Dtype = "auto"

    def session(self) -> Session:
        """A session of its own.

        Raises:
            ValueError: see `Session`.
        """
        from geollava.answering.session import Session  # late: the command line reads this record

        return Session(
            self.model,
            num_keep=self.num_keep,
            method=self.method,
            device=self.device,
            dtype=self.dtype,
            resize=self.resize,
            memory_budget=self.memory_budget,
            session_memory=self.session_memory,
        )

    def of_scenes(self) -> dict[str, Any]:
        """The arguments of `Session.see`, and of `imagery.open_scene`."""
        return {"bands": self.bands, "exif": self.exif, "max_pixels": self.max_pixels}

    def of_answers(self) -> str:
        """Those that change an answer, as JSON. The model is known for each row instead."""
        elsewhere = ["model", "memory_budget", "session_memory", "device", "max_pixels"]
        if self.exif == "stored":  # outputs of earlier versions say nothing of it, and are such
            elsewhere.append("exif")
        return json.dumps({k: v for k, v in asdict(self).items() if k not in elsewhere})
