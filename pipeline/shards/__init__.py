"""WebDataset shards, the tables beside them, and their samples as tensors."""
