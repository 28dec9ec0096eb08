"""File -> scene -> canvas -> crops, with the grid choice and the pixels of the published pipeline.

files.py     a file or an image in memory -> a scene
isolated.py  scenes decoded in another process, which worker.py is
reader.py    which reader a file gets; orientation.py says which way its image is to be turned
picture.py   plain pictures, by Pillow
raster.py    GeoTIFF, COG, JPEG 2000 and VRT (vrt.py), by GDAL; stretch.py makes them 8 bits
scene.py     what both readers are: rows of RGB, when they are needed
canvas.py    the grid of crops for an image of a size
resizer.py   rows of the scene, resized; resample.py and resample_compiled.py compute them
crops.py     resized rows -> crops
"""

from geollava.imagery.canvas import (
    allowed_canvases,
    fitted_size,
    image_box,
    parse_canvases,
    select_canvas,
)
from geollava.imagery.crops import all_crops, crop_rows, cut_crops, normalize_crops, resized
from geollava.imagery.files import as_scene, open_scene, read_image, to_rgb
from geollava.imagery.orientation import EXIF_MODES
from geollava.imagery.raster import files_of
from geollava.imagery.scene import RESIZE_MODES, Georeference, Scene

__all__ = [
    "EXIF_MODES",
    "RESIZE_MODES",
    "Georeference",
    "Scene",
    "all_crops",
    "allowed_canvases",
    "as_scene",
    "crop_rows",
    "cut_crops",
    "files_of",
    "fitted_size",
    "image_box",
    "normalize_crops",
    "open_scene",
    "parse_canvases",
    "read_image",
    "resized",
    "select_canvas",
    "to_rgb",
]
