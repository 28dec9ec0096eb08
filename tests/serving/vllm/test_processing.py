"""What an image is known by in vLLM's caches, and how many placeholders it gets."""

from __future__ import annotations

import pytest

from .engine import given, picture, prompts
from .forks import in_fork
from .test_refusals import configured


def processed(folder, images, request=None, **options):
    """(hashes, placeholders of each image) as the processor of such a server gives them."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = configured(folder, **options)
    processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
    kwargs = {} if request is None else {"tokenprune": request}
    (prompt,) = prompts("qwen2_5_vl", ["landscape"])
    made = processor(
        prompt.text, processor.info.parse_mm_data({"image": images}), hf_processor_mm_kwargs=kwargs
    )
    lengths = [place.length for place in made["mm_placeholders"]["image"]]
    return made["mm_hashes"]["image"], lengths


def test_an_image_is_known_by_its_options(checkpoint):
    folder, image = checkpoint("qwen2_5_vl"), [picture(0, 224, 168)]  # 6 x 8 tokens

    def all_of_them():
        return {
            "quarter": processed(folder, image, **given("divprune", keep_ratio=0.25)),
            "half": processed(folder, image, **given("divprune", keep_ratio=0.5)),
            "half asked": processed(
                folder, image, {"keep_ratio": 0.5}, **given("divprune", keep_ratio=0.25)
            ),
            "twelve": processed(folder, image, **given("divprune", num_keep=12)),
            "other": processed(folder, image, **given("uniform", keep_ratio=0.25)),
        }

    found = in_fork(all_of_them)
    lengths = {name: length for name, (_, (length,)) in found.items()}
    assert lengths == {"quarter": 12, "half": 24, "half asked": 24, "twelve": 12, "other": 12}
    hashes = {name: hash_ for name, ((hash_,), _) in found.items()}
    assert hashes["half"] == hashes["half asked"]
    assert len(set(hashes.values())) == 4


def test_features_that_a_client_encoded_are_refused(checkpoint):
    import torch

    def attempt():
        features = {
            "image_embeds": torch.randn(48, 128),
            "image_grid_thw": torch.tensor([[1, 12, 16]]),
        }
        options = given("divprune", keep_ratio=0.25)
        with pytest.raises(ValueError, match="must be given images, got features"):
            processed(checkpoint("qwen2_5_vl"), features, enable_mm_embeds=True, **options)

    in_fork(attempt)
