"""The papers' figures. Each module has a function that returns a matplotlib figure in the style of `style`."""
