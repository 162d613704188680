"""Checkpoints: the run state as one file, which files to keep, and where they live."""
