"""Training of the decoder, the same for all methods."""
