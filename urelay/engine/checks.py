"""Asks the members of groups that have a `check` whether they work, when nobody else has found out.

Each such group has one task: it sleeps for the interval, then looks at the members one after the
other. A member that carried a client within the interval has shown that it works and is left alone;
so is everybody at the start. The others connect to the endpoint, through the member as a client would,
and hang up. A member that fails is suspect until it passes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from urelay.engine.health import Condition
from urelay.engine.resolve import Resolver
from urelay.engine.ways import Ways
from urelay.errors import DialError
from urelay.net.address import Endpoint
from urelay.policy.model import HealthCheck, Upstream

log = logging.getLogger(__name__)


class Checks:
    """The checks of one policy. `run` them in a task, and cancel it when the policy goes."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        conditions: Mapping[str, Condition],
        new_ways: Callable[[], Ways],
        resolver: Resolver,
        patience_s: float,
    ) -> None:
        """`new_ways` for each attempt; one takes at most `patience_s`."""
        self._groups = [upstream for upstream in upstreams.values() if upstream.check is not None]
        self._conditions = conditions
        self._new_ways = new_ways
        self._resolver = resolver
        self._patience_s = patience_s

    def __bool__(self) -> bool:
        """Whether there is anything to check."""
        return bool(self._groups)

    async def run(self) -> None:
        """Check until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for group in self._groups:
                assert group.check is not None
                tasks.create_task(self._watch(group, group.check))

    async def _watch(self, group: Upstream, check: HealthCheck) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(check.every_s)
            for member in group.members:
                if not self._conditions[member].worked_since(loop.time() - check.every_s):
                    await self._look_at(member, check)

    async def _look_at(self, member: str, check: HealthCheck) -> None:
        loop = asyncio.get_running_loop()
        condition, began = self._conditions[member], loop.time()
        try:
            async with asyncio.timeout(self._patience_s):
                targets = await self._targets(check.endpoint, member)
                called = check.endpoint.host if isinstance(check.endpoint.host, str) else None
                way = await self._new_ways().through(member, targets, called)
            way.sock.close()
        except (DialError, TimeoutError) as error:
            why = str(error) or f"no answer in {self._patience_s:g} s"
            condition.failed(began, loop.time(), f"check of {check.endpoint}: {why}")
        except Exception:
            # A fault of ours must not end the checks of every other member.
            log.exception("a check failed for a reason nobody foresaw")
        else:
            condition.worked(loop.time())

    async def _targets(self, endpoint: Endpoint, member: str) -> list[Endpoint]:
        if isinstance(endpoint.host, bytes) or self._new_ways().takes_names(member):
            return [endpoint]
        return [Endpoint(address, endpoint.port) for address in await self._resolver.resolve(endpoint.host)]
