"""Readings beside a measurement: bandwidth, memory, the machine."""
