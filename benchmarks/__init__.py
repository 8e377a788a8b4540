"""Timings; nothing here is needed to train."""
