"""Rasters, read by GDAL window by window: GeoTIFF, COG, JPEG 2000 and VRT.

The file is not trusted: GDAL gets the one driver that the first bytes ask for, no network, no side
files that name others, and no block that does not fit the memory.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from geollava.common.extras import install
from geollava.imagery.scene import (
    CHECK_PIXELS,
    PUBLISHED_MAX_PIXELS,
    Georeference,
    Scene,
    check_size,
)
from geollava.imagery.stretch import PERCENTILES, Stretch
from geollava.imagery.vrt import safe_vrt

# Read by windows, so that only time is at stake.
MAX_PIXELS = 2**34
MAX_BLOCK_BYTES = 256 * 1024 * 1024
SAMPLE_SIDE = 1024  # pixels of the reduced form that the percentiles are computed from
DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"<VRTDataset": "VRT",
}
SIDE_SUFFIXES = (".ovr", ".msk", ".OVR", ".MSK")  # of external overviews and masks
GDAL_OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": 64 * 1024 * 1024,  # bytes, of the process
    "GDAL_NUM_THREADS": min(16, os.cpu_count() or 1),
    "GDAL_PAM_ENABLED": "NO",  # .aux.xml may name any file as overview
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
}


def driver_of(path: Path) -> str | None:
    """The GDAL driver for a file, by its first bytes; None for what is no raster."""
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
    return next((driver for magic, driver in DRIVERS.items() if start.startswith(magic)), None)


class Raster(Scene):
    """A raster whose rows are read when they are asked for, from overviews where they are reduced.

    Samples of 8 bits are taken as they are, those of fewer bits are spread over 8, deeper ones are
    stretched between percentiles of the whole scene. A pixel that is no data in all bands becomes
    0; an alpha band is dropped, as the published pipeline does.

    Args:
        path: the file.
        driver: of GDAL.
        bands: three bands, from 1, for red, green and blue, or one for gray. None takes those that
            the file calls red, green and blue, else the first three, else the first.
        percentiles: become 0 and 255.
        max_pixels: refuse larger files.

    Raises:
        ImportError: rasterio is missing.
        ValueError: damaged, too large, complex samples, no such band.
    """

    def __init__(
        self,
        path: Path,
        driver: str,
        *,
        bands: tuple[int, ...] | None = None,
        percentiles: tuple[float, float] = PERCENTILES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._path, self._reading, self._fitting = path, threading.Lock(), threading.Lock()
        self._dataset = open_dataset(path, driver, max_pixels)
        with gdal(path):  # even what a file says of itself may turn out to be damaged
            self._look(driver, bands, percentiles)

    def _look(
        self, driver: str, bands: tuple[int, ...] | None, percentiles: tuple[float, float]
    ) -> None:
        path, dataset = self._path, self._dataset
        self.size = dataset.width, dataset.height
        self.max_factor = 2**16
        # The tiles that more would read do not fit GDAL's cache together; a PNG is decoded from its
        # start whenever its rows are not read in order.
        self.readers = 1 if driver == "PNG" else 2
        self.georeference = georeference(dataset)
        self._bands = chosen_bands(path, dataset, bands)
        dtype = np.result_type(*(dataset.dtypes[band - 1] for band in self._bands))
        if dtype.kind not in "iuf":
            raise ValueError(f"{path} must have real samples, its bands are {dtype}")
        self._palette = palette(dataset, self._bands)
        self._others = no_data_bands(dataset, self._bands)
        self._inverted = self._palette is None and is_inverted(dataset)
        self._few_bits = spread_bits(dataset, self._bands) if self._palette is None else None
        self._deep, self._percentiles = dtype != np.uint8, percentiles
        self._stretch: Stretch | None = None
        self.as_published = (
            not self._deep and dataset.width * dataset.height <= PUBLISHED_MAX_PIXELS
        )

    def read_rows(self, top: int, bottom: int, factor: int) -> np.ndarray:
        width, height = self.size
        last = min(bottom * factor, height)
        window = ((top * factor, last), (0, width))
        samples, valid = self._read(window, (bottom - top, math.ceil(width / factor)))
        if self._palette is not None:
            return self._palette[samples[0]] * valid[..., None]
        pixels = self._stretch_of_all()(samples) if self._deep else samples
        if self._few_bits is not None and not self._deep:
            pixels = np.stack([to[band] for to, band in zip(self._few_bits, pixels, strict=True)])
        if self._inverted:
            pixels = 255 - pixels
        if self._others is not None:
            pixels = pixels * valid
        if len(pixels) == 1:
            pixels = np.repeat(pixels, 3, axis=0)
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

    def _stretch_of_all(self) -> Stretch:
        """Fitted to the whole scene when its first rows are read."""
        with self._fitting:
            if self._stretch is None:
                width, height = self.size
                scale = max(1.0, max(self.size) / SAMPLE_SIDE)
                shape = max(1, round(height / scale)), max(1, round(width / scale))
                sample, valid = self._read(None, shape)
                self._stretch = Stretch.between_percentiles(sample, valid, self._percentiles)
            return self._stretch

    def check(self) -> Iterator[None]:
        """By blocks as they are stored: whole rows of them may not fit the memory."""
        width, height = self.size
        block_rows, block_cols = self._dataset.block_shapes[self._bands[0] - 1]
        cols = min(width, max(1, CHECK_PIXELS // block_rows // block_cols) * block_cols)
        rows = max(1, CHECK_PIXELS // cols // block_rows) * block_rows
        for top in range(0, height, rows):
            for left in range(0, width, cols):
                bottom, right = min(top + rows, height), min(left + cols, width)
                self._read(((top, bottom), (left, right)), (bottom - top, right - left))
                yield

    def close(self) -> None:
        self._dataset.close()

    def _read(self, window: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Of a window ((top, bottom), (left, right)).

        Returns:
            (samples, valid): [bands, *shape], and [*shape] bool, False where a pixel is no data.
        """
        from rasterio.enums import Resampling

        options = {
            "window": window,
            "out_shape": (len(self._bands), *shape),
            # Means of palette entries would be other colors, and means of a sample no samples.
            "resampling": Resampling.nearest
            if self._palette is not None or window is None
            else Resampling.average,
        }
        with self._reading, gdal(self._path):
            samples = self._dataset.read(self._bands, **options)
            if self._others is None:
                return samples, np.ones(shape, dtype=bool)
            valid = self._dataset.read_masks(self._bands, **options).any(axis=0)
            for band in self._others:  # rarely needed: where all that is shown is no data
                if valid.all():
                    break
                options["out_shape"] = shape
                valid |= self._dataset.read_masks(band, **options) > 0
            return samples, valid


@contextmanager
def gdal(path: Path) -> Iterator[None]:
    """GDAL as we want it in this thread, its errors as a line of ours."""
    import rasterio
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import CRSError, RasterioError

    try:
        with rasterio.Env(**GDAL_OPTIONS):
            yield
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0]
        raise ValueError(f"{path} cannot be read: {reason}") from error


def open_dataset(path: Path, driver: str, max_pixels: int) -> Any:
    """The rasterio dataset of a file, checked before a pixel of it is read."""
    try:
        import rasterio
    except ModuleNotFoundError as error:
        raise ImportError(f"{path} needs rasterio to be read: {install('geo')}") from error

    name = str(path.resolve())
    if driver == "VRT":
        name, sources = safe_vrt(path)
        for source in sources:
            check_vrt_source(path, source)
    else:
        check_side_files(path)
    with gdal(path), warnings.catch_warnings():
        # Where a raster lies is nobody's concern until it is asked for; see `georeference`.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        dataset = rasterio.open(name, driver=driver)
        check_dataset(path, dataset, max_pixels)
    return dataset


def check_vrt_source(path: Path, source: Path) -> None:
    driver = driver_of(source)
    with source.open("rb") as file:
        start = file.read(4096)
    # GDAL takes any file with such a word near its start for XML of that kind.
    if driver not in ("GTiff", "JP2OpenJPEG") or b"<VRT" in start or b"<GDAL" in start:
        raise ValueError(f"{path}: the source {source.name} must be a TIFF or JPEG 2000 file")
    open_dataset(source, driver, MAX_PIXELS).close()


def check_side_files(path: Path) -> None:
    """External overviews and masks must be TIFF: GDAL would open whatever lies there."""
    for side in side_files(path):
        if driver_of(side) != "GTiff":
            raise ValueError(f"{side} must be a TIFF to stand beside {path.name}")


def side_files(path: Path) -> list[Path]:
    sides = [path.with_name(path.name + suffix) for suffix in SIDE_SUFFIXES]
    return [side for side in sides if side.is_file()]


def files_of(path: Path) -> list[Path]:
    """All files that the pixels of a scene come from; the file alone where it is damaged."""
    try:
        driver = driver_of(path) if path.is_file() else None
        sources = safe_vrt(path)[1] if driver == "VRT" else []
        rasters = [path, *sources] if driver else []
        return [path, *sources, *(side for raster in rasters for side in side_files(raster))]
    except (ValueError, OSError, RecursionError):
        return [path]


def check_dataset(path: Path, dataset: Any, max_pixels: int) -> None:
    check_size(path, (dataset.width, dataset.height), max_pixels)
    if not dataset.count:
        raise ValueError(f"{path} must have at least one band, it has none")
    if dataset.tags(ns="OVERVIEWS"):
        raise ValueError(f"{path} names another file as its overview, such files are not read")
    interleaved = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    for (rows, cols), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        if rows * cols * np.dtype(dtype).itemsize * interleaved > MAX_BLOCK_BYTES:
            raise ValueError(
                f"{path} is stored in blocks of {cols} x {rows} pixels, more than "
                f"{MAX_BLOCK_BYTES:,} bytes each: store it in tiles, as gdal_translate -of COG does"
            )


def georeference(dataset: Any) -> Georeference | None:
    if dataset.crs is None or dataset.transform.is_identity:
        return None
    return Georeference(dataset.crs.to_wkt(), tuple(dataset.transform)[:6])


def chosen_bands(path: Path, dataset: Any, bands: tuple[int, ...] | None) -> list[int]:
    if bands is not None:
        if not all(1 <= band <= dataset.count for band in bands):
            raise ValueError(
                f"bands of {path} are 1 to {dataset.count}, got {', '.join(map(str, bands))}"
            )
        return list(bands)
    names = [interpretation.name for interpretation in dataset.colorinterp]
    if {"red", "green", "blue"} <= set(names):
        return [names.index(color) + 1 for color in ("red", "green", "blue")]
    return [1, 2, 3] if dataset.count >= 3 else [1]


def palette(dataset: Any, bands: list[int]) -> np.ndarray | None:
    """[256, 3] uint8, the colors that a single band of 8 bits stands for, if it stands for any."""
    if len(bands) > 1 or dataset.colorinterp[bands[0] - 1].name != "palette":
        return None
    colors = np.zeros((256, 3), dtype=np.uint8)
    for entry, color in dataset.colormap(bands[0]).items():
        if entry < 256:
            colors[entry] = color[:3]
    return colors


def spread_bits(dataset: Any, bands: list[int]) -> np.ndarray | None:
    """[bands, 256] uint8, what samples of fewer than 8 bits become; None where all have 8.

    GDAL gives them as they are, so that the most of 4 bits, 15, would be nearly black.
    """
    tags = [dataset.tags(band, ns="IMAGE_STRUCTURE") for band in bands]
    most = np.array([[2 ** min(8, int(tag.get("NBITS", 8))) - 1] for tag in tags])
    if (most == 255).all():
        return None
    return np.round(np.minimum(np.arange(256), most) * (255 / most)).astype(np.uint8)


def no_data_bands(dataset: Any, bands: list[int]) -> list[int] | None:
    """The bands other than `bands` in which a pixel without data has none either.

    A sample that equals the no-data value is one, unless all bands of the pixel are, alpha aside.
    None where every pixel is data.
    """
    from rasterio.enums import ColorInterp, MaskFlags

    flags = dict(zip(dataset.indexes, dataset.mask_flag_enums, strict=True))
    colors = dict(zip(dataset.indexes, dataset.colorinterp, strict=True))
    if any(MaskFlags.per_dataset in flags[band] for band in bands):
        alpha = any(MaskFlags.alpha in flags[band] for band in bands)
        return None if alpha else []
    counted = {*bands, *(band for band in flags if colors[band] != ColorInterp.alpha)}
    if not all(MaskFlags.nodata in flags[band] for band in counted):
        return None
    return sorted(counted - set(bands))


def is_inverted(dataset: Any) -> bool:
    """Whether 0 is white: GDAL says so, and leaves the samples as they are."""
    return dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
