"""Long fuzzing of every parser, outside the tests: ``python -m tests.fuzz --seconds 60``.

Files are mutated at random from small ones that are read, under the limits of :mod:`tests.torture.fuzzing`. Whatever is
not an error that the documentation names is a finding; its file is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.parsers import targets
from tests.torture.fuzzing import fuzz

_ENDLESS = 1 << 62  # inputs: the time ends a parser


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parsers", nargs="*", help=f"default: all of {', '.join(targets())}")
    parser.add_argument("--seconds", type=float, default=60, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()), help="folder for files that are findings"
    )
    options = parser.parse_args()
    bad = 0
    for name in options.parsers or targets():
        until = time.monotonic() + options.seconds
        found = fuzz(name, targets()[name], _ENDLESS, until, options.seed, options.keep, print)
        bad += len(found["findings"])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
