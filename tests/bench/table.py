"""The table: lookups beside C tries, whole decisions, a million prefixes from a file, start-up.

The prefixes have the lengths of an Internet routing table, more or less, and the addresses asked
for are half inside them and half anywhere. Every subject gets packed addresses and does with them what
is fastest for it: pytricia is subscripted (`get` is a call), as it is and frozen (laid out anew).
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.measure import Report, machine, nanoseconds, process_times
from tests.strategies import GUARD, listener, policy, prefix, region, route, upstream, wall
from urelay.net.address import Address, Prefix
from urelay.policy.model import Deny, Destinations, Direct, Policy, Region, TableChoice, Via
from urelay.table.compile import compile_policy

SIZES = (100_000, 1_000_000)
ASKED = 100_000
ROOT = Path(__file__).parents[2]
_LENGTHS = {16: 1, 18: 1, 19: 2, 20: 4, 21: 4, 22: 10, 23: 8, 24: 60, 32: 10}


def main(arguments: Sequence[str]) -> int:
    """Run everything; exit status 1 when a bar was missed."""
    if arguments:
        print("table takes no arguments", file=sys.stderr)
        return 2
    report = Report()
    print(machine(), end="\n\n")
    for size in SIZES:
        _lookups(report, size)
    _compile(report)
    _processes(report)
    print(machine())
    return report.status()


def random_prefixes(count: int) -> list[Prefix]:
    """So many different IPv4 prefixes in unicast space."""
    chance = random.Random(count)
    lengths, weights = list(_LENGTHS), list(_LENGTHS.values())
    found: set[Prefix] = set()
    while len(found) < count:
        for length in chance.choices(lengths, weights, k=count - len(found)):
            address = chance.randrange(1 << 24, 224 << 24)
            found.add(Prefix(4, address >> (32 - length) << (32 - length), length))
    return sorted(found)


def random_addresses(prefixes: list[Prefix]) -> list[Address]:
    """Packed addresses, every other one inside a prefix."""
    chance = random.Random(len(prefixes))
    inside = (
        one.first + chance.randrange(1 << (32 - one.length)) for one in chance.choices(prefixes, k=ASKED // 2)
    )
    anywhere = (chance.getrandbits(32) for _ in range(ASKED // 2))
    found = [number.to_bytes(4) for number in (*inside, *anywhere)]
    chance.shuffle(found)
    return found


def example_policy(prefixes: list[Prefix]) -> Policy:
    """A policy as people write them, with a large list in it: walls, ports, sources, listeners."""
    return policy(
        [
            route(region("any"), Via("out"), 1),
            route(Region(Destinations(tuple(prefixes))), Direct(), 2),
            route(region("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"), Deny(), 3),
            route(region("10.0.0.0/8", port="22", source="192.168.7.0/24"), Direct(), 4),
        ],
        walls=[wall(region("any", port="135-139 445"), 5), wall(region("any", port="25", on="lan box"), 6)],
        guard=GUARD,
        upstreams=[upstream("out")],
        listeners=[listener("lan"), listener("box", TableChoice("main", prefix("10.0.0.0/8")))],
    )


def _lookups(report: Report, size: int) -> None:
    prefixes = random_prefixes(size)
    asked = random_addresses(prefixes)
    table = compile_policy(example_policy(prefixes))
    decide, source = table.decide, bytes((192, 168, 7, 9))

    def decisions(addresses: Sequence[Address]) -> None:
        for address in addresses:
            decide(address, 443, source, "lan")

    subjects = {"urelay": _each(table.world("main").v4.lookup), "urelay, whole decision": decisions}
    subjects |= _peers(prefixes)
    found = nanoseconds(subjects, asked)
    rows = ([name, f"{figure.least:,.0f}", f"{figure.median:,.0f}"] for name, figure in found.items())
    report.table(f"{size:,} IPv4 prefixes", ["least ns", "median ns"], rows)
    if "pytricia" in found:
        bar = found["pytricia"].median
        report.bar(f"lookup at {size:,}, against pytricia", found["urelay"].median, bar, "ns")
    else:
        report.skipped(f"lookup at {size:,}, against pytricia", "pytricia is not installed")
    report.bar(f"whole decision at {size:,}", found["urelay, whole decision"].least / 1000, 1.5, "µs")
    print()


Subject = Callable[[Sequence[Address]], None]


def _each(lookup: Callable[[Address], object]) -> Subject:
    def run(addresses: Sequence[Address]) -> None:
        for address in addresses:
            lookup(address)

    return run


def _peers(prefixes: list[Prefix]) -> dict[str, Subject]:
    """The same lookups by other libraries, as far as they are installed."""
    subjects: dict[str, Subject] = {}
    if importlib.util.find_spec("pytricia") is not None:
        subjects["pytricia"] = _pytricia(prefixes, frozen=False)
        subjects["pytricia, frozen"] = _pytricia(prefixes, frozen=True)
    if importlib.util.find_spec("radix") is not None:
        import radix

        tree = radix.Radix()
        for _, first, length in prefixes:
            tree.add(packed=first.to_bytes(4), masklen=length)

        def search(addresses: Sequence[Address]) -> None:
            for address in addresses:
                tree.search_best(packed=address)

        subjects["py-radix"] = search
    if len(prefixes) <= 100_000:
        import netaddr

        blocks = netaddr.IPSet(netaddr.IPNetwork((first, length), version=4) for _, first, length in prefixes)

        def contain(addresses: Sequence[Address]) -> None:
            for address in addresses:
                _ = netaddr.IPAddress(int.from_bytes(address), 4) in blocks

        subjects["netaddr IPSet"] = contain
    return subjects


def _pytricia(prefixes: list[Prefix], *, frozen: bool) -> Subject:
    import pytricia

    trie = pytricia.PyTricia(32)
    trie.insert(bytes(4), 0, True)  # everything is found, or a subscript would raise
    for _, first, length in prefixes:
        trie.insert(first.to_bytes(4), length, True)
    if frozen:
        trie.freeze()

    def subscript(addresses: Sequence[Address]) -> None:
        for address in addresses:
            trie[address]

    return subscript


def _compile(report: Report) -> None:
    count = SIZES[-1]
    if importlib.util.find_spec("urelay.policy.check") is None:
        report.skipped(f"compile {count:,} prefixes from a file", "there is no policy checker here")
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "many.txt").write_text("".join(f"{one}\n" for one in random_prefixes(count)))
        main_file = Path(folder, "many.urr")
        main_file.write_text('set many = file "many.txt"\nmatch @many -> direct\nmatch any -> deny\n')
        command = [sys.executable, "-m", "tests.bench.compile_once", str(main_file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(
        f"{count:,} prefixes from a file: {found['intervals']:,} intervals, read in {found['read_s']:.2f} s"
    )
    report.bar("read, check and compile", found["whole_s"], 12, "s")
    report.bar("memory at its peak", found["peak_mib"], 700, "MiB")
    print()


def _processes(report: Report) -> None:
    if importlib.util.find_spec("urelay.__main__") is None:
        report.skipped("urelay --help, urelay check", "there is no command line here")
        return
    for arguments, bar in ((["--help"], 0.15), (["check", "rules/site.urr"], 0.4)):
        cpu, wall = process_times([sys.executable, "-m", "urelay", *arguments], ROOT)
        print(
            f"urelay {' '.join(arguments)}: cpu {cpu.least:.3f} s at least, {cpu.median:.3f} in the median; ",
            end="",
        )
        print(f"wall clock {wall.least:.3f} and {wall.median:.3f}")
        report.bar(f"urelay {' '.join(arguments)}", wall.least, bar, "s")
