"""The sound encoders as graphs."""
