"""`python -m tests.bench NAME`: run one benchmark; exit 1 when a bar was missed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_SHARED = ("measure", "compile_once")


def main(arguments: list[str]) -> int:
    """Run the benchmark named on the command line."""
    stems = (path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    names = sorted(stem for stem in stems if stem not in _SHARED)
    if len(arguments) != 1 or arguments[0] not in names:
        print(f"usage: python -m tests.bench {{{','.join(names)}}}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"tests.bench.{arguments[0]}").main())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
