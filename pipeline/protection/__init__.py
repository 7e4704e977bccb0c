"""The workshop of the protect stage: checkpoints, what is prepared once, and the crafting of a shard."""
