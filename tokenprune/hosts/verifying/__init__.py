"""The parts of `tokenprune.verify`."""
