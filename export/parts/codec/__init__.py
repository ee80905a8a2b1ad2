"""The codec as graphs: whole sounds, and piece by piece."""
