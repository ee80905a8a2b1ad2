"""Measures subjects in turn, block by block."""
