"""What the other packages build on: data, losses, metrics, checkpoints, files. Imports none of them."""
