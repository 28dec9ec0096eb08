"""Questions to very large remote-sensing images: GeoLLaVA-8K on top of tokenprune.

Reading images does without transformers, which takes seconds and 190 MB: it is imported with the
first name that needs it. Its Auto classes know the model, whichever package is imported first.
"""

from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from geollava.common.extras import install
from geollava.model.registration import register, register_with_transformers
from geollava.moved import serve_old_paths

# Looked for before `register_with_transformers` changes how transformers is found. Raised when a
# name is needed: the command line must be able to say it in one line.
_missing = [name for name in ("transformers", "typer", "rich") if find_spec(name) is None]
MISSING_EXTRA = (
    f"geollava needs the extra hf, {', '.join(_missing)} not found: {install('hf')}"
    if _missing
    else None
)
# Said here too: where the other package's files have won, tokenprune itself says nothing.
if any(True for _ in distributions(name="tokenprune")):
    raise ImportError(
        "PyPI's unrelated package tokenprune is installed beside tokenprune-vlm, and both are "
        "imported as tokenprune. Remove both, then install tokenprune-vlm"
    )

if TYPE_CHECKING:
    from geollava.answering.session import Session
    from geollava.model.configuration import GeoLlavaConfig
    from geollava.model.modeling import GeoLlavaForConditionalGeneration
    from geollava.model.processing import GeoLlavaImageProcessor, GeoLlavaProcessor

__all__ = [
    "GeoLlavaConfig",
    "GeoLlavaForConditionalGeneration",
    "GeoLlavaImageProcessor",
    "GeoLlavaProcessor",
    "Session",
]
_HOMES = {
    "GeoLlavaConfig": "geollava.model.configuration",
    "GeoLlavaForConditionalGeneration": "geollava.model.modeling",
    "GeoLlavaImageProcessor": "geollava.model.image_processing",
    "GeoLlavaProcessor": "geollava.model.processing",
    "Session": "geollava.answering.session",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        if "transformers" in _missing:
            raise ImportError(MISSING_EXTRA)
        register()  # all of the model, whichever part is asked for
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


serve_old_paths()
if "transformers" not in _missing:
    register_with_transformers()
