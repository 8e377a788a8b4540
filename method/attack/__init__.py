"""Attacks: one file per method. `Attack` is their base class."""

from method.attacker import Attack

__all__ = ["Attack"]
