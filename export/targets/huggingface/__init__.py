"""Exports the text side as a model for Hugging Face transformers."""
