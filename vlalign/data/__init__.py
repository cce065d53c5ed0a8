"""Files to batches: records, sources, views of them, and the deterministic pipeline."""
