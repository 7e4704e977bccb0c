"""Several runs side by side: `python pipeline/compare.py RUN RUN ... --to FOLDER`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from pipeline.config.flags import call
from pipeline.config.tracking_uri import checked
from pipeline.storage.folder import Folder
from pipeline.storage.layout import COMPARISON_PARQUET, PAGE
from pipeline.storage.run import open_run

if TYPE_CHECKING:
    from pipeline.results.run_results import RunResults

# What loads torch is imported in functions: `--help` need not wait for it.


def _read_all(uris: Sequence[str]) -> list[RunResults]:
    """Read the runs; one that cannot be read is left out, and named with the reason."""
    from pipeline.results.run_results import RunResults

    runs = []
    for uri in dict.fromkeys(uris):
        try:
            run = RunResults.read(open_run(uri))
            if "pack" not in run.manifests:
                raise ValueError(f"{run.folder.uri} has no finished stage: it is no run, or it has only begun")
            runs.append(run)
        except (ValueError, OSError, KeyError) as error:
            said = f"a manifest lacks {error}" if isinstance(error, KeyError) else str(error)
            print(f"{uri} is left out: {said}", file=sys.stderr)
    return runs


def _target(to: str) -> Folder:
    """Open the folder to write into.

    Raises:
        ValueError: it cannot be made, or holds something other than an earlier comparison.
    """
    folder = Folder.open(to)
    folder.make()
    if folder.names() and not folder.exists(COMPARISON_PARQUET):
        raise ValueError(f"{folder.uri} holds something other than a comparison: give --to another folder")
    return folder


def _compare_runs(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    others: Positional[tuple[str, ...]] = (),
    *,
    to: str = "runs/comparison",
    tracking_uri: str | None = None,
) -> int:
    """Compare runs: settings, cost and victims' accuracies, as a table, pictures and a page.

    Args:
        run: folder or URI (s3://...) of a run, or of a point of a sweep; stages that have not finished are shown as missing
        others: more runs
        to: folder or URI for comparison.csv, comparison.parquet, pictures and index.html
        tracking_uri: MLflow server or database that logs the comparison; that of the runs if not given; none: nothing is logged
    """
    from pipeline.pages.comparison_page import write
    from pipeline.results.comparison import compare, text
    from pipeline.tracking.afterwards import log_comparison

    uri = None if tracking_uri is None else checked(tracking_uri)
    folder = _target(to)
    found = _read_all([run, *others])
    if not found:
        raise ValueError("none of the runs can be read")
    compared = compare(found)
    write(compared, folder, title="Comparison of " + ", ".join(compared.runs))
    print(text(compared))
    print(f"\n  page      {folder.uri}/{PAGE}")
    if logged := log_comparison({name: found.folder for name, found in compared.runs.items()}, folder, text(compared), uri):
        print(f"  MLflow    {logged}")
    return 0


def main(arguments: Sequence[str] | None = None, program: str = "compare.py") -> int:
    """Compare, and return the exit code: 0 for success, 1 for a failure, which is printed, 2 for wrong usage."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    try:
        return call(_compare_runs, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
