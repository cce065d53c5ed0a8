"""Pixels or tokens in, embeddings out: linen modules that know nothing of losses or training."""
