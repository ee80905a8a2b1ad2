"""Sounds on their way to the encoder and from the codec."""
