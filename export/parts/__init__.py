"""The parts of a bundle as graphs: body, heads, codec and encoders."""
