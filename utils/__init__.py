"""What every experiment shares: parameters, data, losses, the training engine and the run folder."""
