"""Rows -> packs -> a trained checkpoint."""
