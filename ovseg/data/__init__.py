"""Image-text pairs: reads webdataset shards and collects usable pairs, the nouns of their captions and a bank of distinct texts."""
