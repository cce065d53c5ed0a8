"""Other people's directories of configuration and weights: one kind a file, read and written."""
