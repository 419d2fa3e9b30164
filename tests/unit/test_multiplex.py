"""The exchanges that share a connection, against a real HTTP/2 peer over memory BIOs."""
