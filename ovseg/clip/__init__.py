"""The frozen CLIP: images and texts in, dense features and text embeddings out, cached on disk."""
