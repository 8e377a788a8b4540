"""One run: parameters, training engine and run folder."""
