"""What is fuzzed: a name, files to begin with, and the reader or command that takes them.

A target is called with one mutated file (or a seed, for those that make tensors) in a folder of
good ones, which is the working directory. It may return, or raise one of `REFUSALS` with a readable
line. Everything else is a finding.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import commands

REFUSALS = (ValueError, TypeError, NotImplementedError, OSError)
MAX_PIXELS = 4_000_000


@dataclass(frozen=True)
class Target:
    """`seeds(folder)` writes good files and returns them; `read(path)` is what must hold out.

    Attributes:
        weight: how often it is drawn, against others; quick ones are drawn more often.
    """

    seeds: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    weight: int = 1


MOSAIC = """<VRTDataset rasterXSize="64" rasterYSize="64">
  <SRS>EPSG:32633</SRS>
  <GeoTransform>500000, 1, 0, 5000000, 0, -1</GeoTransform>
  <VRTRasterBand dataType="Byte" band="1">
    <SimpleSource>
      <SourceFilename relativeToVRT="1">strips.tif</SourceFilename>
      <SourceBand>1</SourceBand>
      <SrcRect xOff="0" yOff="0" xSize="64" ySize="64"/>
      <DstRect xOff="0" yOff="0" xSize="64" ySize="64"/>
    </SimpleSource>
  </VRTRasterBand>
</VRTDataset>
"""

# -- seeds ----------------------------------------------------------------------------------------


def pictures(folder: Path) -> list[Path]:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    made = []
    for name, mode, options in (
        ("rgb.png", "RGB", {}),
        ("alpha.png", "RGBA", {}),
        ("palette.png", "P", {}),
        ("gray.jpg", "L", {}),
        ("rgb.jpg", "RGB", {"progressive": True}),
        ("rgb.webp", "RGB", {}),
        ("plain.tif", "RGB", {}),
        ("deflate.tif", "RGB", {"compression": "tiff_deflate"}),
    ):
        path = folder / name
        Image.fromarray(noise).convert(mode).save(path, **options)
        made.append(path)
    return made


def rasters(folder: Path) -> list[Path]:
    import rasterio
    from rasterio.transform import from_origin

    made = []
    for name, driver, dtype, options in (
        ("strips.tif", "GTiff", "uint8", {}),
        ("tiles.tif", "GTiff", "uint16", {"tiled": True, "blockxsize": 32, "blockysize": 32}),
        ("deflate.tif", "GTiff", "float32", {"compress": "deflate"}),
        ("nodata.tif", "GTiff", "int16", {"nodata": -1}),
        ("wavelet.jp2", "JP2OpenJPEG", "uint8", {}),
    ):
        path = folder / name
        values = np.random.default_rng(0).integers(0, 200, (3, 64, 64)).astype(dtype)
        profile = {"width": 64, "height": 64, "count": 3, "dtype": dtype, "crs": "EPSG:32633"}
        profile |= {"driver": driver, "transform": from_origin(5e5, 5e6, 1, 1), **options}
        with rasterio.open(path, "w", **profile) as file:
            file.write(values)
        made.append(path)
    (folder / "mosaic.vrt").write_text(MOSAIC)
    return [*made, folder / "mosaic.vrt"]


def rows(folder: Path) -> list[Path]:
    path = folder / "rows.json"
    talk = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "2"}]
    path.write_text(json.dumps([{"id": "a", "image": "rgb.png", "conversations": talk}] * 2))
    pictures(folder)
    return [path]


def tables(folder: Path) -> list[Path]:
    import pyarrow
    from pyarrow import csv, parquet

    table = pyarrow.table({"scene": ["a.png", "b.png"], "more": [1, 2]})
    parquet.write_table(table, folder / "scenes.parquet")
    csv.write_csv(table, folder / "scenes.csv")
    (folder / "questions.txt").write_text("How many ships?\nWhich color?\n")
    return [folder / name for name in ("scenes.parquet", "scenes.csv", "questions.txt")]


def recipes(folder: Path) -> list[Path]:
    root = Path(__file__).resolve().parents[2] / "examples" / "train"
    return [Path(shutil.copy(path, folder)) for path in sorted(root.glob("*.yaml"))]


def configs(folder: Path) -> list[Path]:
    from geollava.model.default_model import default_checkpoint

    source = default_checkpoint()
    return [Path(shutil.copy(source / name, folder)) for name in ("config.json",)]


def tokenizers(folder: Path) -> list[Path]:
    from geollava.model.default_model import default_checkpoint

    return [Path(shutil.copy(default_checkpoint() / "tokenizer.json", folder))]


def weights(folder: Path) -> list[Path]:
    import torch
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file({"a": torch.zeros(4, 4), "b.c": torch.ones(3)}, path)
    return [path]


def numbers(folder: Path) -> list[Path]:
    path = folder / "seed.bin"
    path.write_bytes(bytes(range(32)))
    return [path]


# -- readers --------------------------------------------------------------------------------------


def read_scene(path: Path) -> None:
    from geollava.imagery import open_scene, resized

    with open_scene(path, max_pixels=MAX_PIXELS) as scene:
        resized(scene, (32, 32))


def read_table(path: Path) -> None:
    from geollava.answering.scene_list import read_questions, read_scenes

    (read_questions if path.suffix == ".txt" else read_scenes)(path)


def read_recipe(path: Path) -> None:
    from geollava.training.config import read_config

    read_config(path)


def read_model_config(path: Path) -> None:
    from geollava import GeoLlavaConfig

    GeoLlavaConfig.from_pretrained(path.parent)


def read_tokenizer(path: Path) -> None:
    """The mutated file in the place of the shipped model's own."""
    from geollava import GeoLlavaProcessor
    from geollava.model.default_model import default_checkpoint

    folder = path.parent
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            shutil.copy(default_checkpoint() / name, folder)
    GeoLlavaProcessor.from_pretrained(folder)


def read_weights(path: Path) -> None:
    from geollava.model import checkpoint

    checkpoint.check_tensors(path.parent, {"a": (4, 4), "b.c": (3,)}, frozenset())


def reduce_tensors(path: Path) -> None:
    """A method on tensors of drawn shapes, dtypes and values."""
    import torch

    import tokenprune
    from tokenprune.method import required_options

    draw = random.Random(path.read_bytes())
    classes = {name: tokenprune.method_class(name) for name in tokenprune.list_methods()}
    names = [name for name, known in classes.items() if not required_options(known)]
    batch, rows, cols, width = (draw.randint(0, 5) for _ in range(4))
    dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
    tokens = rows * cols + draw.choice([0, 0, 0, 1])
    values = torch.full((batch, tokens, width), draw.choice([0.0, 1.0, 1e38, float("nan")]))
    features = (values + torch.randn(batch, tokens, width)).to(dtype)
    extra: dict[str, Any] = {}
    if draw.random() < 0.7:
        extra = {
            "cls": torch.randn(batch, width).to(dtype),
            "attention": torch.rand(batch, tokens),
            "text": torch.randn(batch, 3, width).to(dtype),
        }
    tokenprune.get_method(draw.choice(names)).reduce(
        tokenprune.VisionTokens(features, (rows, cols), **extra), draw.randint(-1, 30)
    )


def both(*seeds: Callable[[Path], list[Path]]) -> Callable[[Path], list[Path]]:
    return lambda folder: [path for some in seeds for path in some(folder)]


TARGETS = {
    "picture": Target(pictures, read_scene, 2),
    "raster": Target(rasters, read_scene, 2),
    "rows": Target(rows, commands.validate, 3),
    "table": Target(tables, read_table, 3),
    "recipe": Target(recipes, read_recipe, 14),
    "config": Target(configs, read_model_config, 16),
    "tokenizer": Target(tokenizers, read_tokenizer, 14),
    "weights": Target(weights, read_weights, 14),
    "tensors": Target(numbers, reduce_tensors, 14),
    "ask": Target(commands.beside_a_model(both(pictures, rasters)), commands.ask),
    "ask-own": Target(commands.own_checkpoint, commands.ask_a_checkpoint, 2),
    "ask-published": Target(commands.published_checkpoint, commands.ask_a_checkpoint, 2),
    "export": Target(commands.own_checkpoint, commands.export, 2),
    "batch": Target(commands.beside_a_model(commands.lists_of_scenes), commands.batch),
    "evaluate": Target(commands.beside_a_model(commands.benchmark_rows), commands.evaluate),
    "train": Target(commands.beside_a_model(commands.training), commands.train),
    "verify": Target(commands.llava, commands.verify),
}
