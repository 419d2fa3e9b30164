"""TLS on OpenSSL, sans I/O."""
