"""Batch sizes beside the number of images: whether a training has a single step to take."""

from __future__ import annotations

from pipeline.config.schema import RunConfig


def check_batch_sizes(config: RunConfig, images: int) -> None:
    """Refuse batches that the training images do not fill.

    Args:
        config: of the run.
        images: for training.

    Raises:
        ValueError: a training that is asked for would have no batch.
    """
    asked = {"surrogate": config.surrogate.batch_size} if config.trains_surrogate else {}
    asked |= {"victim": config.victim.batch_size} if "victim" in config.stages else {}
    for section, size in asked.items():
        if size > images:
            raise ValueError(
                f"{section}.batch-size = {size} is more than the {images} training images: give --{section}.batch-size {images} or less"
            )
