"""
The core, for people who write a driver of their own: for trio, gevent, Qt, or a test.

The core decides and never waits. A driver moves bytes, waits, and carries out what the core asks for:

1. `AgentCore.exchange()` checks a request, `AgentCore.acquire()` gives a `Lease` at once, or a `Ticket` (also in
   `exchange.ticket`) whose end comes as an effect.
2. `AgentCore.effects()` is what is to be done, in this order; ask after each call of the core. `Connect`: carry out the
   `Dial` in `attempt.user`. `Grant`: put the lease into the exchange of `ticket.user` and start it. `Refuse`: fail
   that exchange. `Close`: close the transport if `AgentCore.closed()` says that nobody did.
   A dial enters its phases, `AgentCore.open()` makes the connection over its transport, bytes are exchanged until
   `connection.info` or `connection.dead`. Alive, it goes to `AgentCore.connected()`. Dead, with `info` or not, it is
   closed; then `AgentCore.may_dial_again()` says whether to begin anew, else `AgentCore.dial_failed()` ends it.
3. `AgentCore.start()` begins an exchange on its connection. One that has served before is looked at first:
   `Connection.check_idle()`, then what has arrived on its transport. One that is found `dead` goes back by
   `AgentCore.give_back()`, and the exchange acquires anew. A body that is a `Body` goes by `Connection.send_body()` and
   `Connection.end_body()`, once `exchange.holding` is over (it waits for a 100) and until `exchange.upload_stopped`.
4. What comes in is fed to `Connection.receive_data()`, `receive_eof()` or `receive_error()`; then `data_to_send()` is
   written, `AgentCore.keep_sessions()` called, and `AgentCore.settle()` once `connection.ended` or `connection.dead` is
   set, else `AgentCore.watch()`. While `connection.reading_paused`, nothing more is read.
   If `exchange.nudged`, who sends the body looks again, and it is cleared.
5. An exchange is over when it is `ready`. If it has an `error` and `may_retry`, `start_over()` and go back to 1.
   `exchange.switched` is the connection if the response has switched protocols. Its lease stays out:
   `Connection.take_over()` gives what comes, `write()` sends, `hang_up()` and `AgentCore.settle()` end it.
6. One timer, at `AgentCore.next_deadline()`, calls `AgentCore.handle_timeout()`; the connections that it returns have
   news. Two deadlines are the driver's: `Dial.deadline`, then `Dial.overdue()`; and `Exchange.total_at` while it waits
   on a ticket, then `Exchange.total_timeout()` and `AgentCore.cancel()`. A caller may give up at any moment:
   `cancel()` ends a ticket, `Connection.drop()` and `AgentCore.settle()` an exchange on its connection.
7. A connection with `shared` set speaks HTTP/2 and carries many exchanges; calls must not overlap. It is looked at only
   if `lease.may_be_stale`, and given back if it `refuses()` or the exchange `AgentCore.needs_other()`. After each call
   `shared.take_touched()` names the exchanges to look at (`ready`, `nudged`; if `switched` is theirs, its `listener`),
   and `AgentCore.settle()` and `watch()` are called. While an exchange is `blocked` no further piece of its body is
   sent. Whoever takes chunks of one that has a `stream` calls `Connection.credit()`; a response that is given up is
   dropped even after its end, while it has one. Reading never pauses; while writing does, `data_to_send()` is not
   called. `exchange.switched` is a `Stream`, with the verbs of a connection, and `read()` for what was taken.

`tlsagent.testing.simulation` is such a driver in one file. Every `now` is a monotonic clock in seconds.
"""

from __future__ import annotations

from tlsagent._body import PIECE, Body
from tlsagent._connection import Connection, News, RawSink
from tlsagent._connection_info import ConnectionInfo
from tlsagent._core import AgentCore
from tlsagent._dial import Dial
from tlsagent._exchange import Awaiting, Exchange, Timings, closed_error
from tlsagent._multiplex import Multiplex, Stream
from tlsagent._pool import Attempt, Close, Connect, Effect, Grant, Lease, Pool, Refuse, Ticket
from tlsagent._raw import RawStream
from tlsagent._response import Response, ResponseFacts

__all__ = [
    "PIECE",
    "AgentCore",
    "Attempt",
    "Awaiting",
    "Body",
    "Close",
    "Connect",
    "Connection",
    "ConnectionInfo",
    "Dial",
    "Effect",
    "Exchange",
    "Grant",
    "Lease",
    "Multiplex",
    "News",
    "Pool",
    "RawSink",
    "RawStream",
    "Refuse",
    "Response",
    "ResponseFacts",
    "Stream",
    "Ticket",
    "Timings",
    "closed_error",
]
