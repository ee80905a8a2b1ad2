"""How subjects are measured in turn, block by block."""
