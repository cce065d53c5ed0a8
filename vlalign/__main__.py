"""`python -m vlalign` is the `vlalign` command."""

import sys

from vlalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
