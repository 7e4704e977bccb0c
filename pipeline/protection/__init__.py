"""The workshop of the protect stage: checkpoints, preparations, and the crafting and release of a shard."""
