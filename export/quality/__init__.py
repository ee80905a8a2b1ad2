"""How an export measures its own quality, and how it calibrates rounded weights."""
