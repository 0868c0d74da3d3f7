"""Read, check and compile one policy in a process of its own; print seconds, MiB and intervals."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path


def main() -> None:
    """The policy is the one argument."""
    start = time.perf_counter()
    from urelay.policy.check import check_file
    from urelay.table.compile import compile_policy

    checked = check_file(sys.argv[1])
    read = time.perf_counter() - start
    if checked.policy is None:
        sys.exit("; ".join(found.message for found in checked.diagnostics))
    table = compile_policy(checked.policy)
    print(
        json.dumps(
            {
                "read_s": read,
                "whole_s": time.perf_counter() - start,
                "peak_mib": _peak_kib() / 1024,
                "intervals": len(table.world("main").v4),
            }
        )
    )


def _peak_kib() -> int:
    # Not getrusage: its maximum survives exec, so a large parent would be counted here.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main()
