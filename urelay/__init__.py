"""urelay: a TCP relay for network namespaces, ruled by a policy language.

    import urelay

    policy = urelay.load("rules/site.urr")
    policy.decide("10.1.2.3", 22, source="192.168.7.9", listener="lan")

`load` reads, checks and proves a policy as `urelay check` does, and raises `PolicyError` with every
diagnostic when it has errors. Importing this package imports nothing else until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from urelay.errors import AddressError, PolicyError, StartError, UrelayError
    from urelay.services.loaded import LoadedPolicy
    from urelay.table.decision import Decision

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "Decision",
    "LoadedPolicy",
    "PolicyError",
    "StartError",
    "UrelayError",
    "__version__",
    "load",
]

_HOMES = {
    "AddressError": "urelay.errors",
    "Decision": "urelay.table.decision",
    "LoadedPolicy": "urelay.services.loaded",
    "PolicyError": "urelay.errors",
    "StartError": "urelay.errors",
    "UrelayError": "urelay.errors",
}
"""Where each public name is defined, so that it can be imported when first asked for."""


def load(path: str | os.PathLike[str]) -> LoadedPolicy:
    """The policy in a file, with all it includes, checked and proved; raises PolicyError."""
    from urelay.services import loaded

    return loaded.load(path)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module `urelay` has no attribute `{name}`")
