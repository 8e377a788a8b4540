"""The papers' figures. Each drawing function returns a matplotlib figure; `style` says how it looks."""
