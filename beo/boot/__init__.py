"""Machines without a disk: what a head serves so that they boot, and what they do until they are workers."""
