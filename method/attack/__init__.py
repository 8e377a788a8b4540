"""Attacks, one file per method. `Attack` is the base class of all attacks."""

from method.attacker import Attack

__all__ = ["Attack"]
