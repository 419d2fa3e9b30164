"""Drivers: whoever waits."""
