"""The options of the commands, each said once. Nothing heavy is imported to list them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geollava.answering.memory import parse_memory
from geollava.answering.settings import Settings
from geollava.common.choices import Dtype, OnBadRows
from geollava.evaluate.benchmark import list_benchmarks
from geollava.model.default_model import default_checkpoint

if TYPE_CHECKING:
    from geollava.evaluate.rows import Data
    from geollava.evaluate.runner import Options


def local_path(text: str) -> Path:
    """A path of the command line; a URL is refused as it was written, with both slashes."""
    if "://" in text:
        raise typer.BadParameter(f"{text} is a URL: download it, files on this machine are read")
    return Path(text)


def parse_bands(text: str) -> tuple[int, ...]:
    """ "4,3,2" -> (4, 3, 2)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"must be numbers such as 4,3,2, got {text}") from error


def number(text: str, *names: str, least: int = 1, of: int = 1) -> Any:
    """An option that is a number, in units of `of`. Typer's own does not say what came instead.

    Args:
        text: for its help.
        least: the smallest that may come, from 0.
    """

    def parse(word: str | int) -> int:  # a default is a number already
        if isinstance(word, int):
            return word
        if not word.isdecimal() or int(word) < least:
            raise typer.BadParameter(f"must be a number from {least}, got {word}")
        return int(word) * of

    return typer.Option(*names, parser=parse, metavar="N", help=text)


def memory_size(text: str) -> str:
    """The text, checked."""
    try:
        parse_memory(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return text


def session_memory_size(text: str) -> str:
    """Likewise; 0 is nothing."""
    return text if text == "0" else memory_size(text)


def scenes_argument(text: str) -> Any:
    return typer.Argument(parser=local_path, metavar="SCENES", help=text)


MODEL = "Checkpoint: a folder or a hub name (default: a small one that is shipped)"
METHOD = "How tokens are chosen: of `tokenprune methods`, or none (default: as the model does)"
NUM_KEEP = "Visual tokens to keep per crop (default: the model's)"
DEVICE = "auto, cpu, cuda, cuda:1, mps"
DTYPE = "Of the weights; auto: bfloat16 on a GPU"

BenchmarkArgument = Annotated[str, typer.Argument(help=", ".join(list_benchmarks()))]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON")]
OutOption = Annotated[Path, typer.Option(help="Folder for results; goes on where it was")]
LimitOption = Annotated[int | None, number("Only so many rows")]
SplitOption = Annotated[str | None, typer.Option(help="Which part of the data")]
ImagesOption = Annotated[
    Path | None, typer.Option(help="Where image paths start (default: by the data)")
]

SettingsOptions = Annotated[
    Settings,
    {
        "model": typer.Option(help=MODEL, show_default=False),
        "num_keep": number(NUM_KEEP),
        "method": typer.Option(help=METHOD),
        "max_new_tokens": number("Length limit of an answer"),
        "bands": typer.Option(
            parser=parse_bands,
            metavar="R,G,B",
            help="Bands for red, green and blue, such as 4,3,2, or one for gray",
        ),
        "resize": typer.Option(
            help="pillow: pixels as published; "
            "fast: start from overviews or a JPEG decoded at reduced size"
        ),
        "exif": typer.Option(
            help="stored: pixels as published; applied: turned as EXIF or TIFF says"
        ),
        "max_pixels": number(
            "Refuse larger images (default: 537; rasters 17,180)", "--max-megapixels", of=10**6
        ),
        "memory_budget": typer.Option(
            parser=memory_size,
            metavar="SIZE",
            help="What encoding may take beside the weights, such as 8GiB",
        ),
        "session_memory": typer.Option(
            parser=session_memory_size,
            metavar="SIZE",
            help="What may be kept of a scene for further questions; 0: nothing",
        ),
        "device": typer.Option(help=DEVICE),
        "dtype": typer.Option(help=DTYPE),
    },
]


@dataclass(frozen=True)
class DeviceOptions:
    """Where and how a model that is evaluated runs."""

    device: Annotated[str, typer.Option(help=DEVICE)] = "auto"
    dtype: Annotated[Dtype, typer.Option(help=DTYPE)] = "auto"
    attention: Annotated[
        str | None,
        typer.Option(help="sdpa, eager, flash_attention_2 (default: transformers')"),
    ] = None


@dataclass(frozen=True)
class ModelOptions(DeviceOptions):
    """A model that is evaluated."""

    model: Annotated[
        str,
        typer.Option(
            show_default=False,
            help="Checkpoint of ours or of transformers: folder or hub name (default: the small "
            "one)",
        ),
    ] = str(default_checkpoint())


@dataclass(frozen=True)
class ReductionOptions:
    """How its tokens are reduced."""

    method: Annotated[str | None, typer.Option(help=METHOD)] = None
    num_keep: Annotated[int | None, number(NUM_KEEP)] = None


@dataclass(frozen=True)
class DataOptions:
    """What a model is evaluated on."""

    data: Annotated[
        str, typer.Option(help="File, folder or hub name; test.json of geollava scenes too")
    ]
    split: SplitOption = None
    images: ImagesOption = None

    def of(self, benchmark: Any) -> Data:
        """The rows of a benchmark.

        Raises:
            ValueError: see `Data`.
        """
        from geollava.evaluate.rows import Data

        return Data(benchmark, self.data, self.split, self.images)


@dataclass(frozen=True)
class RunOptions:
    """How questions are asked."""

    limit: LimitOption = None
    batch_size: Annotated[int, number("Questions at a time")] = 8
    max_new_tokens: Annotated[
        int | None, number("Length limit of a reply (default: published)")
    ] = None

    def options(self, **more: Any) -> Options:
        from geollava.evaluate.runner import Options

        return Options(**vars(self), **more)


@dataclass(frozen=True)
class ScoredRunOptions(RunOptions):
    """How questions are asked and scored."""

    on_bad_rows: Annotated[
        OnBadRows, typer.Option(help="Whether rows that cannot be asked end it, or count")
    ] = "refuse"
    seed: Annotated[int, number("Of the bootstrap intervals", least=0)] = 0


@dataclass(frozen=True)
class PageOptions:
    """Where the web page is served, and what it gives."""

    host: Annotated[
        str, typer.Option(help="Address to listen on; all but this machine's own ask a password")
    ] = "127.0.0.1"
    port: Annotated[int, number("Port to listen on; 0 takes a free one", least=0)] = 7860
    folder: Annotated[
        Path | None, typer.Option(help="Scenes below this folder can be opened by their names")
    ] = None
    password: Annotated[
        str | None,
        typer.Option(
            envvar="GEOLLAVA_PASSWORD",
            help="To be known by who looks (default: none on this machine, else one is made up)",
        ),
    ] = None
    upload_bytes: Annotated[
        int | None,
        number("Largest file that is sent, in MiB (default: 512)", "--max-upload", of=2**20),
    ] = None
