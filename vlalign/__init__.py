"""vlalign: train, align and evaluate models that put images and text into one space.

Importing the package is cheap and starts no accelerator: import the parts by their own names
(`vlalign.experiment`, `vlalign.losses`, ...).
"""

__version__ = "0.1.0"
