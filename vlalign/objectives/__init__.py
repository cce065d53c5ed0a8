"""Batch and towers in, weighted terms out: the only place where methods live."""
