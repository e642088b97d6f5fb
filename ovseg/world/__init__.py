"""The rendered world: scenes with captions and label maps, written as shards, and the compact CLIP pretrained on them."""
