"""Many runs: plans, launching, records, tables and figures. From Python, `study.run` runs a benchmark."""

from study.api import run
from study.cards import describe, show, show_interval

__all__ = ["describe", "run", "show", "show_interval"]
