"""Figures of the papers and of the benchmark.

A module has a function of the same name that returns a matplotlib figure. `style` and `teachers` hold what several
figures share.
"""
