"""The parts of `tokenprune.profile`."""
