"""The same parsers under atheris, which is guided by coverage: ``python -m tests.fuzz.guided rec -max_total_time=60``.

The first argument names a parser of :mod:`tests.fuzz.parsers`; the others are libFuzzer's. Needs ``pip install atheris``.
Anything but an error that the documentation names ends the run with the file that provoked it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["occfast.data", "occfast.evaluate"]):
    from tests.fuzz.parsers import targets


def main() -> None:
    known = targets()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"parser: expected one of {', '.join(known)}, got {' '.join(sys.argv[1:2]) or 'none'}")
    target = known[sys.argv.pop(1)]
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for k, seed in enumerate(target.seeds):
        (corpus / str(k)).write_bytes(seed)

    def one(content: bytes) -> None:
        with contextlib.suppress(*target.errors):
            target.parse(content, folder)

    warnings.simplefilter("ignore")
    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
