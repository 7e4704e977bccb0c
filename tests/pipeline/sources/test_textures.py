from __future__ import annotations

import numpy as np

from pipeline.sources.textures import CLASSES, SIDE, dataset, textures


def test_any_subset_gives_the_same_images() -> None:
    every = textures(0, "train", range(40))
    assert every.shape == (40, SIDE, SIDE, 3)
    assert textures(0, "train", [17, 3]).tolist() == every[[17, 3]].tolist()


def test_seed_split_and_number_each_change_an_image() -> None:
    images = [textures(0, "train", [3]), textures(1, "train", [3]), textures(0, "test", [3]), textures(0, "train", [13])]
    assert len({image.tobytes() for image in images}) == len(images)


def test_classes_differ_in_orientation_and_frequency() -> None:
    """Averaged over images, each class's power spectrum peaks where its grating lies."""
    for label in range(len(CLASSES)):
        images = textures(0, "train", range(label, 3000, 10)).astype(float).mean(axis=3)
        others = textures(0, "train", range((label + 5) % 10, 3000, 10)).astype(float).mean(axis=3)
        power, background = (np.abs(np.fft.fft2(i - i.mean((1, 2), keepdims=True))).mean(0) for i in (images, others))
        y, x = np.unravel_index(np.argmax((power - background)[: SIDE // 2 + 1]), (SIDE // 2 + 1, SIDE))
        x = x - SIDE if x > SIDE // 2 else x
        angle, radius = np.rad2deg(np.arctan2(y, x)) % 180, np.hypot(x, y)
        wanted = label % 5 * 36
        assert min(abs(angle - wanted), 180 - abs(angle - wanted)) < 18, CLASSES[label]
        assert abs(radius - (3.5, 7)[label // 5]) < 1.8, CLASSES[label]


def test_the_whole_set_is_balanced_and_readable() -> None:
    data = dataset(5)
    labels = [entry.label for entry in data.entries if entry.split == "train"]
    assert np.bincount(labels).tolist() == [200] * 10
    assert sum(entry.split == "test" for entry in data.entries) == 1000
    some = [data.entries[7], data.entries[2001]]
    pixels = {entry: np.asarray(levels) for entry, levels in data.reader.read(some)}
    assert pixels[some[0]].tolist() == textures(5, "train", [7])[0].tolist()
    assert pixels[some[1]].tolist() == textures(5, "test", [1])[0].tolist()
