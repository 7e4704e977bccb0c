"""The check that images suit the requested stages, by their number, classes and size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pipeline.config.batch_sizes import check_batch_sizes
from pipeline.config.schema import RunConfig
from pipeline.protection.noise import check_noise_memory
from pipeline.sources import decoding
from pipeline.sources.dataset import Dataset
from pipeline.training.clean_shares import check_clean_shares
from pipeline.training.initial import check_initial
from pipeline.training.known_images import check_known_images
from pipeline.training.networks import check_networks

LOOKED_AT = 8  # images, of which one must be readable for its size to be known before packing

Labels = Callable[[Collection[int]], Mapping[str, int]]  # of the training images of these classes, by key


def check_suitable(config: RunConfig, classes: Sequence[str], train: int, labels: Labels, size: tuple[int, int] | None) -> None:
    """Refuse what the stages after packing would refuse, before hours go into the first of them.

    Args:
        config: of the run.
        classes: names of all classes, in label order.
        train: number of training images.
        labels: asked only where a stage needs them.
        size: height and width of the images in pixels; None if it is not known yet.

    Raises:
        ValueError: a training would have no batch, a network cannot take the images, a share of clean images lacks a class, too
            many or too few images are known, the pretrained network of a victim cannot be had, or the noise of a method does not fit
            memory.
    """
    check_batch_sizes(config, train)
    check_clean_shares(config, classes, labels)
    check_known_images(config, classes, train, labels)
    check_initial(config)
    if size is not None:
        check_networks(config, len(classes), *size)
        check_noise_memory(config, train, *size)


def check_scanned(config: RunConfig, dataset: Dataset) -> None:
    """Check what a scan has found, before anything is packed.

    Raises:
        ValueError: see `check_suitable`.
    """
    train = dataset.split("train")

    def labels(protected: Collection[int]) -> Mapping[str, int]:
        return {entry.key: entry.label for entry in train if entry.label in protected}

    later = {*config.needed_stages} - {"pack", "report"}
    check_suitable(config, dataset.classes, len(train), labels, _size(config, dataset) if later else None)


def _size(config: RunConfig, dataset: Dataset) -> tuple[int, int] | None:
    """Return the height and width of the packed images, for which one of them is read; None if none of the first can be."""
    if config.input_size:  # which is all that networks see
        return config.input_size, config.input_size
    if config.pack.size:
        return config.pack.size, config.pack.size
    for entry in [entry for entry in dataset.split("train") if not entry.fault][:LOOKED_AT]:
        for _, content in dataset.reader.read([entry]):
            try:
                pixels = decoding.decode(content, config.pack.max_pixels) if isinstance(content, bytes) else content
            except decoding.Refused:
                continue
            return pixels.shape[0], pixels.shape[1]
    return None
