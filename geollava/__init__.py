"""Questions to very large remote-sensing images: GeoLLaVA-8K on top of tokenprune."""

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError("geollava needs the extra hf: pip install 'tokenprune-vlm[hf]'") from error

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from geollava.configuration import GeoLlavaConfig, PublishedConfig
from geollava.modeling import GeoLlavaForConditionalGeneration
from geollava.processing import GeoLlavaImageProcessor, GeoLlavaProcessor

AutoConfig.register(GeoLlavaConfig.model_type, GeoLlavaConfig)
AutoConfig.register(PublishedConfig.model_type, PublishedConfig)
AutoModelForImageTextToText.register(GeoLlavaConfig, GeoLlavaForConditionalGeneration)
AutoProcessor.register(GeoLlavaConfig, GeoLlavaProcessor)

__all__ = [
    "GeoLlavaConfig",
    "GeoLlavaForConditionalGeneration",
    "GeoLlavaImageProcessor",
    "GeoLlavaProcessor",
]
