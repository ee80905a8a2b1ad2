"""The compiled sampler against a slow model of it."""
