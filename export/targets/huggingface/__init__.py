"""The text side as a model of Hugging Face transformers."""
