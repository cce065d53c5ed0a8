"""The process of the `vlalign` command: `vlalign ...` and `python -m vlalign ...`."""

import logging
import os
import sys

from vlalign.cli import main as run


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    # orbax tells through absl what it was asked to do; failures it raises.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if sys.argv[1:2] == ["train"]:
        _ask_for_huge_pages()
    return run()


def _ask_for_huge_pages() -> None:
    """Starts this process again with huge pages for large allocations, where glibc can (2.35).

    XLA takes its buffers anew each step; in pages of 4 KiB the kernel spends a fifth of a CPU
    training step on handing them out. glibc reads its tunables only when a process starts.
    Whoever sets GLIBC_TUNABLES is left alone.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        recent = name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    except ValueError:  # another C library
        return
    if recent and sys.executable:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
