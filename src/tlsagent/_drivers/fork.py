"""
What the child of a fork must not touch.

A connection belongs to one process. The child has copies of its descriptor and of its TLS state; a single byte sent
with them (a close_notify too) breaks the parent's connection. So in the child, before anything else runs, each such
descriptor is made to lead to /dev/null: whatever still holds it, our code, asyncio's or uvloop's, writes and closes
there. Its number stays taken until its holder closes it, so that nobody closes a stranger's. Then every holder (agents,
the resolver) is told to begin anew.

Nothing here takes a lock, for a thread that held one does not exist in the child, and no TLS state is freed there,
for such a thread may have been in the middle of using it.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

from tlsagent.errors import ConnectionLost

if TYPE_CHECKING:
    import socket


class Holder(Protocol):
    """Who holds something that a child must not use."""

    def forked(self) -> None:
        """Forget it. Runs in the child, in its only thread."""


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_kept: Final[list[Any]] = []


def watch_socket(sock: socket.socket) -> None:
    """Cut the socket off in every child."""
    _sockets.add(sock)


def watch(holder: Holder) -> None:
    """Tell the holder in every child."""
    _holders.add(holder)


def keep(inherited: object) -> None:
    """Never let go of what cannot be freed in good order here: TLS state, transports and tasks of the parent's loop."""
    _kept.append(inherited)


def inherited_error() -> ConnectionLost:
    """Return the error of a request that was under way when the process forked, as the child sees it."""
    return ConnectionLost(
        "the process has forked: the connection is the parent's, and so is the response; send the request again",
        code="ERR_TLSAGENT_FORKED",
    )


def _in_child() -> None:
    descriptors = {descriptor for sock in list(_sockets) if (descriptor := sock.fileno()) >= 0}
    if descriptors:
        _lead_nowhere(descriptors)
    for holder in list(_holders):
        holder.forked()


def _lead_nowhere(descriptors: set[int]) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
    except OSError:  # none is left to this process: the first of ours makes room, and its number is what we get
        os.close(min(descriptors))
        nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors - {nowhere}:
        with contextlib.suppress(OSError):
            os.dup2(nowhere, descriptor, inheritable=False)
    if nowhere not in descriptors:
        os.close(nowhere)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
