"""Checkpoints of running programs, kept in the workers' memory: what stands behind `beo.checkpoint`."""
