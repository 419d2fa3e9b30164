"""
Many requests of all kinds through few connections, for as long as one likes: what is slow to show itself shows here.

`server.py` is the peer, in a process of its own; `load.py` what is asked of it and what may come back; `workers.py` the
threads or tasks that ask; `measure.py` what must be the same afterwards.
"""
