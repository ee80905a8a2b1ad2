"""The codec as graphs: for whole sounds, and for sounds piece by piece."""
