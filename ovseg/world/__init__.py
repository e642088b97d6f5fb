"""The rendered world, this repository's own data set: scenes with captions and label maps (scenes.py), and a CLIP trained on them."""
