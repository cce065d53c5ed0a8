"""What a training step will need on machines that are not there: compiled for them, and read."""
