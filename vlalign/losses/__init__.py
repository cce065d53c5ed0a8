"""Arrays to numbers: pure functions that know nothing of models, configurations or batches."""
