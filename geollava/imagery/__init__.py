"""File -> scene -> canvas -> crops, with the grid choice and the pixels of the published pipeline.

files.py     a file or an image in memory -> a scene
isolated.py  scenes decoded in another process, which worker.py is
reader.py    which reader a file gets; orientation.py says which way its image is to be turned
picture.py   plain pictures, by Pillow
raster.py    GeoTIFF, COG, JPEG 2000 and VRT (vrt.py), by GDAL; stretch.py makes them 8 bits
scene.py     what both readers are: rows of RGB, when they are needed
canvas.py    Canvas: the grid of crops for an image of a size, chosen once
resizer.py   rows of the scene, resized; resample.py and resample_compiled.py compute them
crops.py     resized rows -> crops
token_map.py TokenMap: a token's place -> pixels of the image -> longitude and latitude
"""

from typing import TYPE_CHECKING

from geollava.imagery.canvas import (
    MAX_CROPS,
    Canvas,
    allowed_canvases,
    parse_canvases,
    select_canvas,
)
from geollava.imagery.crops import all_crops, crop_rows, cut_crops, normalize_crops, resized
from geollava.imagery.files import as_scene, open_scene, read_image, to_rgb
from geollava.imagery.orientation import EXIF_MODES
from geollava.imagery.raster import files_of
from geollava.imagery.scene import RESIZE_MODES, Georeference, Scene
from geollava.imagery.token_map import TokenMap
from geollava.moved import names_of

__all__ = [
    "EXIF_MODES",
    "MAX_CROPS",
    "RESIZE_MODES",
    "Canvas",
    "Georeference",
    "Scene",
    "TokenMap",
    "all_crops",
    "allowed_canvases",
    "as_scene",
    "crop_rows",
    "cut_crops",
    "files_of",
    "normalize_crops",
    "open_scene",
    "parse_canvases",
    "read_image",
    "resized",
    "select_canvas",
    "to_rgb",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
