"""What is read beside a measurement: bandwidth, memory, the machine."""
