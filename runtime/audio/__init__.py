"""Sound on its way to the encoder and from the codec."""
