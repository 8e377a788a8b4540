"""Basic parts: data, losses, metrics, checkpoints, files. Imports no other package of the project."""
