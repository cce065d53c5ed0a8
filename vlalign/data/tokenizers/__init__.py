"""Tokenizers with a vocabulary from a file; the one trained on captions is in `..tokenizer`."""
