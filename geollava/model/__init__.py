"""The model: vision tower, token reduction, projector, language model."""
