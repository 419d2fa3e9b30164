"""
From names to addresses, in a few daemon threads of our own.

`getaddrinfo` cannot be interrupted: whoever waits gives up at the deadline and the thread goes on by itself. An
executor would do, were it not that it keeps the interpreter from exiting. Look-ups of the same host and family that run
at the same time are one. Nothing is cached: the system's resolver does that.
"""

from __future__ import annotations

import _thread
import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo needs it: a fork while one of our threads imports it hangs the child
import inspect
import socket
import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tlsagent._drivers import fork
from tlsagent._drivers.addresses import Address
from tlsagent._option_rules import is_ip_address
from tlsagent.errors import OptionTypeError, ResolutionError, TLSAgentError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tlsagent._identity import Route

_MAX_THREADS: Final = 4


class Lookup:
    """
    One look-up under way.

    Attributes:
        addresses, error: The outcome; both None until it is done.
        callbacks: Whom to tell. Guarded by the resolver's lock while it runs.
    """

    __slots__ = ("addresses", "callbacks", "error", "host")

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: list[Address] | None = None
        self.error: OSError | None = None
        self.callbacks: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether the outcome is known."""
        return self.addresses is not None or self.error is not None

    def result(self, port: int) -> list[Address]:
        """Return the addresses with the port in them; raises `ResolutionError`."""
        if self.error is not None:
            raise resolution_error(self.host, self.error) from self.error
        return [with_port(address, port) for address in self.addresses or ()]


class Resolver:
    """
    Look-ups for the whole process. `start` returns at once; the callback runs in a thread of the resolver.

    A thread ends when nothing is left to look up, so none waits on anything that gevent may replace meanwhile, and what
    a child of a fork lacks is started with its first look-up.
    """

    def __init__(self) -> None:
        self.forked()
        fork.watch(self)

    def forked(self) -> None:
        """Begin anew: the look-ups and their threads are the parent's."""
        self._lock = threading.Lock()
        self._jobs: deque[tuple[tuple[str, int], Lookup]] = deque()
        self._running: dict[tuple[str, int], Lookup] = {}
        self._threads = 0

    def start(self, host: str, family: int, callback: Callable[[], None]) -> Lookup:
        """Begin a look-up, or join the one that runs for the same host and family."""
        key = (host, family)
        with self._lock:
            lookup = self._running.get(key)
            if lookup is None:
                lookup = Lookup(host)
                self._jobs.append((key, lookup))
                self._running[key] = lookup  # last: nobody may join a look-up that no thread will find
            lookup.callbacks.append(callback)
            spare = bool(self._jobs) and self._threads < _MAX_THREADS
        if spare:
            # Not a threading.Thread: a signal's exception inside its start() comes out as an error of its own locks.
            _thread.start_new_thread(self._work, ())
        return lookup

    def _work(self) -> None:
        with self._lock:
            if self._threads >= _MAX_THREADS:
                return
            self._threads += 1
        while (job := self._next()) is not None:
            key, lookup = job
            try:
                lookup.addresses = _getaddrinfo(*key)
            except OSError as error:
                lookup.error = error
            except UnicodeError as error:
                lookup.error = socket.gaierror(socket.EAI_NONAME, str(error))
            with self._lock:
                self._running.pop(key, None)
            for callback in lookup.callbacks:
                callback()

    def _next(self) -> tuple[tuple[str, int], Lookup] | None:
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            self._threads -= 1  # under the same lock: who adds a job sees that a thread is to be started
            return None


def _getaddrinfo(host: str, family: int) -> list[Address]:
    found = socket.getaddrinfo(host, 0, family=family, type=socket.SOCK_STREAM)
    return [_address(family, sockaddr) for family, _, _, _, sockaddr in found]


def _address(family: int, sockaddr: tuple[Any, ...]) -> Address:
    return Address(family, sockaddr)


def family_of(route: Route) -> int:
    """Return the address family that a route is bound to, 0 for any."""
    return {4: socket.AF_INET, 6: socket.AF_INET6}.get(route.family, 0)


def literal(host: str, port: int) -> list[Address] | None:
    """Return the address of an IP literal, which needs no look-up, or None for a name."""
    if not is_ip_address(host):
        return None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError as error:  # a zone that this machine does not have
        raise resolution_error(host, error) from error
    return [_address(family, sockaddr) for family, _, _, _, sockaddr in found[:1]]


@contextlib.contextmanager
def hook_errors(host: str) -> Iterator[None]:
    """Turn what a `lookup` hook raises into the error of the look-up, with it as the cause."""
    try:
        yield
    except TLSAgentError:
        raise
    except Exception as error:
        text = f"{quoted(host)} was not resolved: lookup raised {type(error).__name__}: {quoted(str(error))}"
        raise ResolutionError(text, code=str(getattr(error, "code", "ENOTFOUND")), phase="lookup") from error


def from_hook(host: str, answer: object, port: int, family: int) -> list[Address]:
    """Return the addresses that a `lookup` hook gave as strings, those of one family alone unless it is 0."""
    if isinstance(answer, (str, bytes)) or not isinstance(answer, Iterable):
        if inspect.iscoroutine(answer):
            answer.close()
        raise OptionTypeError(f"lookup must return a list of address strings, not {type(answer).__name__}")
    addresses = []
    for item in answer:
        found = literal(item, port) if isinstance(item, str) else None
        if not found:
            raise OptionTypeError(f"lookup must return IP addresses as strings, not {quoted(repr(item))}")
        addresses += found
    fitting = [address for address in addresses if not family or address.family == family]
    if addresses and not fitting:
        number = 6 if family == socket.AF_INET6 else 4
        raise ResolutionError(f"{quoted(host)}: lookup gave no address of family {number}", phase="lookup")
    if not fitting:
        raise resolution_error(host, None)
    return fitting


def with_port(address: Address, port: int) -> Address:
    """Return the address with another port."""
    assert not isinstance(address.sockaddr, str)
    return Address(address.family, (address.sockaddr[0], port, *address.sockaddr[2:]))


def resolution_error(host: str, error: OSError | None) -> ResolutionError:
    """Return the error for a name without an address."""
    why = "no address was found" if error is None else error.strerror or str(error)
    code = "EAI_AGAIN" if error is not None and error.errno == socket.EAI_AGAIN else "ENOTFOUND"
    return ResolutionError(f"{quoted(host)} was not resolved: {why}", code=code, phase="lookup")


resolver = Resolver()
