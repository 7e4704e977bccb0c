"""The measure of how well detectors distinguish a run's protected images from clean ones: `python pipeline/detect.py --run URI`.

Detectors learn from some images in both forms, and judge others. Finished detectors are in the run's record, and are not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.config.flags import call
from pipeline.storage.run import existing_run


def _detect_in_run(
    run: str,
    detectors: tuple[str, ...] = (),
    images: int | None = None,
    seed: int = 0,
    split: Literal["train", "test"] = "train",
) -> int:
    """Measure how well detectors distinguish the protected images of a release from clean images of the same source.

    Args:
        run: folder or URI (s3://...) of a run with a release, or of a point of a sweep
        detectors: spectrum, residual, convolutional, iterative-filtering; all if none is given
        images: maximum number of images, half to learn from and half to judge; if not given, as many as take minutes on two cores
        seed: seed for choosing images and training detectors
        split: which split of the release to test
    """
    from pipeline.operations.detection import detect  # loads torch, which takes seconds that `--help` need not wait
    from pipeline.results.detection import Detection
    from pipeline.stages import outcome

    folder = existing_run(run)
    record = detect(folder, detectors, images, seed, split, began=lambda name: print(f"{name} ...", file=sys.stderr))
    outcome.show(folder, "detect")
    print(Detection.of(record))
    return 0


def main(arguments: Sequence[str] | None = None, program: str = "detect.py") -> int:
    """Measure, and return the exit code: 0 for success, 1 for a failure, which is printed, 2 for wrong usage."""
    try:
        return call(_detect_in_run, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
