"""
Replays scenarios of connection pooling that were observed on a real Node, and compares what this library does.

    python -m tests.pooling FILE.json [--json OUT]

    material.py   certificates and values of the file's encoding
    server.py     the servers of a scenario
    client.py     its steps, carried out by an `AsyncAgent` made by `tlsagent.node`
    rules.py      which difference from Node is meant, and why
    replay.py     runs a file and judges
"""
