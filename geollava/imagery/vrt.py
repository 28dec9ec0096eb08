"""GDAL's virtual rasters, read with mistrust: tiles side by side from the same folder, no more.

A VRT can name URLs, any file of the machine, Python code, or other drivers. So GDAL never sees the
file itself, but XML written anew here from the elements that are known to be harmless.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

MAX_BYTES = 16 * 1024 * 1024
DATASET_TAGS = ("SRS", "GeoTransform", "VRTRasterBand", "BlockXSize", "BlockYSize")
BAND_TAGS = (
    "ColorInterp",
    "ColorTable",
    "NoDataValue",
    "SimpleSource",
    "ComplexSource",
    "Description",
    "Offset",
    "Scale",
    "UnitType",
)
SOURCE_TAGS = (
    "SourceFilename",
    "SourceBand",
    "SourceProperties",
    "SrcRect",
    "DstRect",
    "NODATA",
    "UseMaskBand",
)
IGNORED_TAGS = ("Metadata", "OverviewList", "Histograms")


def safe_vrt(path: Path) -> tuple[str, list[Path]]:
    """A VRT file -> (XML for GDAL, the files that it names).

    Raises:
        ValueError: not a VRT; an element that is not allowed; a source outside the VRT's folder.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} must be a VRT of at most {MAX_BYTES:,} bytes")
    content = path.read_bytes()
    if b"<!" in content.replace(b"<!--", b""):
        raise ValueError(f"{path} must be a VRT without document types or entities")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} must be a VRT, its XML is damaged: {error}") from error
    if root.tag != "VRTDataset" or root.get("subClass"):
        raise ValueError(f"{path} must be a plain VRTDataset, got {root.get('subClass', root.tag)}")

    sources: dict[Path, None] = {}
    keep_known(path, root, DATASET_TAGS)
    for band in root.iter("VRTRasterBand"):
        if band.get("subClass"):
            raise ValueError(f"{path}: bands of class {band.get('subClass')} are not read")
        keep_known(path, band, BAND_TAGS)
        for source in [*band.iter("SimpleSource"), *band.iter("ComplexSource")]:
            keep_known(path, source, SOURCE_TAGS)
            for name in source.iter("SourceFilename"):
                file = source_file(path, name)
                sources[file] = None
                name.attrib = {"relativeToVRT": "0"}
                name.text = str(file)
    return ElementTree.tostring(root, encoding="unicode"), list(sources)


def keep_known(path: Path, parent: ElementTree.Element, allowed: tuple[str, ...]) -> None:
    children = [child for child in parent if child.tag not in IGNORED_TAGS]
    for child in children:
        if child.tag not in allowed:
            raise ValueError(f"{path}: a VRT with <{child.tag}> is not read")
    parent[:] = children  # at once: each removal by itself would move all that follow


def source_file(path: Path, name: ElementTree.Element) -> Path:
    """The file that a VRT names, which must lie in its folder or below."""
    folder = path.resolve().parent
    file = (folder / (name.text or "")).resolve()
    if not file.is_file() or not file.is_relative_to(folder):
        raise ValueError(f"{path}: the source {name.text!r} must be a file in the VRT's folder")
    return file
