"""Read, check and compile one policy in a process of its own; print seconds, MiB and intervals."""

from __future__ import annotations

import json
import resource
import sys
import time


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
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "intervals": len(table.world("main").v4),
            }
        )
    )


if __name__ == "__main__":
    main()
