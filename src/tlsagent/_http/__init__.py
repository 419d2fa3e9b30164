"""HTTP engines, sans I/O: messages, the HTTP/1.1 engines, and the choice among them."""
