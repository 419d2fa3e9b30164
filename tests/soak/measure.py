"""
What a soak measures between its stages: it must not grow.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.soak.workers import Crew


@dataclasses.dataclass(frozen=True)
class State:
    """
    What this process holds while nothing is under way.

    Attributes:
        resident: KiB of memory, by the kernel's count.
        blocks: Pieces of memory, by the interpreter's.
        threads: Running.
        connections: To the server's port that are open.
        active, waiting, dialling, idle: The agent's own numbers.
    """

    resident: int
    blocks: int
    threads: int
    connections: int
    active: int
    waiting: int
    dialling: int
    idle: int


def state_of(crew: Crew, port: int) -> State:
    """Measure; memory without idle connections, whose number is chance. Linux only: elsewhere some counts are 0."""
    stats, connections = crew.agent.stats(), connections_to(port)
    crew.close_idle()
    for _ in range(3):
        gc.collect()
    return State(
        resident=_resident(),
        blocks=sys.getallocatedblocks(),
        threads=threading.active_count(),
        connections=connections,
        active=stats.active,
        waiting=stats.waiting,
        dialling=stats.dialling,
        idle=stats.idle,
    )


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:
        return 0


def connections_to(port: int) -> int:
    """Return how many connections to a port this process has open."""
    if not os.path.exists("/proc/self/net/tcp"):
        return 0
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    inodes = {row[9] for row in rows if row[2].endswith(f":{port:04X}")}
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").removeprefix("socket:[").removesuffix("]") in inodes
        except OSError:
            continue
    return found


def left(state: State) -> list[str]:
    """Return what is under way though nobody asked for anything."""
    found = [
        f"{name}: {getattr(state, name)} at rest" for name in ("active", "waiting", "dialling") if getattr(state, name)
    ]
    if sys.platform == "linux" and state.connections != state.idle:
        found.append(f"{state.connections} connections are open, {state.idle} are idle")
    return found


def growth(before: State, after: State) -> list[str]:
    """Return what grew between the middle and the end."""
    found = []
    if after.threads > before.threads:
        found.append(f"threads: {before.threads}, then {after.threads}")
    if after.blocks > before.blocks * 1.02 + 2_000:
        found.append(f"memory blocks: {before.blocks}, then {after.blocks}")
    if after.resident > before.resident * 1.1 + 8_192:
        found.append(f"resident memory: {before.resident} KiB, then {after.resident} KiB")
    return found
