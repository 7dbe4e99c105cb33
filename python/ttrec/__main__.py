"""The command `ttrec`: `python -m ttrec help`."""

from __future__ import annotations

import sys

from ._ttrec import run


def main() -> int:
    return run(["ttrec", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
