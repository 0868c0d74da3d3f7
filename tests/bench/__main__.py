"""`python -m tests.bench NAME`: run one benchmark; exit 1 when a bar was missed."""

from __future__ import annotations

import importlib
import sys

_BENCHMARKS = ("peers", "table")


def main(arguments: list[str]) -> int:
    """Run the benchmark named on the command line, which takes the other arguments."""
    if not arguments or arguments[0] not in _BENCHMARKS:
        print(f"usage: python -m tests.bench {{{','.join(_BENCHMARKS)}}} …", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"tests.bench.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
