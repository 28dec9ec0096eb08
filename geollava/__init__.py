"""Questions to very large remote-sensing images: GeoLLaVA-8K on top of tokenprune."""

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError("geollava needs the extra hf: pip install 'tokenprune-vlm[hf]'") from error

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from geollava.configuration import GeoLlavaConfig, PublishedConfig
from geollava.modeling import GeoLlavaForConditionalGeneration
from geollava.processing import GeoLlavaImageProcessor, GeoLlavaProcessor

AutoConfig.register(GeoLlavaConfig.model_type, GeoLlavaConfig)
AutoConfig.register(PublishedConfig.model_type, PublishedConfig)
AutoModelForImageTextToText.register(GeoLlavaConfig, GeoLlavaForConditionalGeneration)
AutoImageProcessor.register(GeoLlavaConfig, slow_image_processor_class=GeoLlavaImageProcessor)
AutoProcessor.register(GeoLlavaConfig, GeoLlavaProcessor)

__all__ = [
    "GeoLlavaConfig",
    "GeoLlavaForConditionalGeneration",
    "GeoLlavaImageProcessor",
    "GeoLlavaProcessor",
]
