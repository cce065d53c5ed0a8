"""State, optimiser, the one compiled step, the loop, checkpoints and metrics."""
