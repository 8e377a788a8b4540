"""Timings. Training does not need this package."""
