"""Training: dense features and texts in, a trained decoder out. MGCA's losses, the decoder, the training loop."""
