"""Benchmarks, one file each: how a row becomes a prompt, and replies become scores."""
