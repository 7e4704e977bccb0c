"""A bound on what networks near one that was trained on a release can learn: `python pipeline/certify.py --run URI`.

Exit codes: 0 done, 1 it failed, 2 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config.flags import call
from pipeline.storage.run import existing_run
from sep.choices import NetworkName


def _certify_run(
    run: str,
    network: NetworkName | None = None,
    sigma: float = 0.02,
    eta: float = 0.02,
    q: float = 0.9,
    draws: int = 500,
    confidence: float = 0.99,
) -> int:
    """Certify how little networks near one trained on a release can learn: (q, eta)-learnability, in one line with its meaning.

    One network is trained on the release, another on the originals. Both are tested again and again with noise on their parameters.
    Their weights stay in the folder, so that another certificate trains nothing.

    Args:
        run: folder or URI (s3://...) of a run with a release, or of a point of a sweep
        network: architecture; that of the run's first victim if not given
        sigma: standard deviation of the noise on each parameter
        eta: L2 radius (in parameter space) that the bound covers
        q: share of noisy networks the bound must hold for
        draws: number of noisy networks to test
        confidence: probability that the draws give a true bound
    """
    from pipeline.results.certificate import Terms  # here and below: loads scipy and torch, for which `--help` need not wait

    terms = Terms(q=q, eta=eta, sigma=sigma, draws=draws, confidence=confidence)
    from pipeline.stages import outcome
    from pipeline.stages.certificate import certify

    folder = existing_run(run)
    certificate = certify(folder, terms, network)
    outcome.show(folder, "certify")
    print(certificate)
    return 0


def main(arguments: Sequence[str] | None = None, program: str = "certify.py") -> int:
    """Certify, and return the exit code: 0 for success, 1 for a failure, which is printed, 2 for wrong usage."""
    try:
        return call(_certify_run, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{program}: stopped: run the same command to continue each training from its last saved epoch", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
