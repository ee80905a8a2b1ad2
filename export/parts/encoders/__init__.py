"""The audio encoders as graphs."""
