"""The papers' figures. Most modules have a function that returns a matplotlib figure; `style` has their style."""
