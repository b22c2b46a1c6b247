"""Failed logins and wrong keys of each client address, and the growing delay before the next attempt."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

FREE_ATTEMPTS = 5  # a person mistypes
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 300.0
FORGET_SECONDS = 3600.0
ADDRESS_LIMIT = 4096  # addresses in memory; the one that failed longest ago is forgotten first


@dataclass
class _Failures:
    count: int
    last: float


class FailedAttempts:
    """Counts failures: the first five are free, then each doubles the delay, from 1 s up to 5 minutes.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait_seconds(self, address: str) -> float:
        """Seconds until the address may try again; 0 where it may try now."""
        failures = self._failures.get(address)
        if failures is None or failures.count < FREE_ATTEMPTS:
            return 0.0
        exponent = min(failures.count - FREE_ATTEMPTS, 16)
        delay = min(FIRST_SECONDS * 2.0**exponent, LONGEST_SECONDS)
        return max(0.0, failures.last + delay - self._clock())

    def add(self, address: str) -> None:
        """Notes a failure."""
        now = self._clock()
        failures = self._failures.pop(address, None)
        if failures is None or now - failures.last > FORGET_SECONDS:
            failures = _Failures(0, now)
        self._failures[address] = _Failures(failures.count + 1, now)  # the newest stands last
        while len(self._failures) > ADDRESS_LIMIT:
            self._failures.popitem(last=False)

    def clear(self, address: str) -> None:
        """Forgets the failures of an address, after a success."""
        self._failures.pop(address, None)


def address_of(scope: MutableMapping[str, Any]) -> str:
    """The client address of a request; of IPv6 its network of 64 bits, which one customer has whole."""
    client = scope.get("client")
    if not client:
        return "unknown"
    try:
        address = ipaddress.ip_address(str(client[0]))
    except ValueError:
        return str(client[0])[:64]
    if address.version == 6 and not address.is_loopback:
        return str(ipaddress.ip_network(f"{address}/64", strict=False))
    return str(address)
