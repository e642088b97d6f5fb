"""Image-text pairs: webdataset shards in; usable pairs, their captions' nouns and the bank of distinct texts out."""
