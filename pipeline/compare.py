"""Several runs side by side: `python pipeline/compare.py RUN RUN ... --to FOLDER`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro
from tyro.conf import Positional

from pipeline.storage.folder import Folder
from pipeline.storage.layout import COMPARISON_PARQUET, PAGE
from pipeline.storage.run import open_run

if TYPE_CHECKING:
    from pipeline.results.run_results import Measured

# What loads torch is imported in functions: `--help` need not wait for it.


def _read_all(uris: Sequence[str]) -> list[Measured]:
    """What can be read; what cannot is named with its reason."""
    from pipeline.results.run_results import read

    runs = []
    for uri in dict.fromkeys(uris):
        try:
            run = read(open_run(uri))
            if "pack" not in run.found:
                raise ValueError(f"{run.uri} has no finished stage: it is no run, or only begun")
            runs.append(run)
        except (ValueError, OSError, KeyError) as error:
            said = f"a manifest lacks {error}" if isinstance(error, KeyError) else str(error)
            print(f"compare.py: {uri} is left out: {said}", file=sys.stderr)
    return runs


def _target(to: str) -> Folder:
    """The folder to write into.

    Raises:
        ValueError: it holds something else than an earlier comparison.
    """
    folder = Folder.open(to)
    if folder.names() and not folder.exists(COMPARISON_PARQUET):
        raise ValueError(f"{folder.uri} holds something else than a comparison: give --to another folder")
    return folder


def _compare_runs(run: Positional[str], others: Positional[tuple[str, ...]] = (), *, to: str = "runs/comparison") -> int:
    """Print what runs were made with, what that cost and how their victims did, and write it as tables, pictures and a page.

    Args:
        run: folder or URI (s3://...) of a run, or of a point of a sweep; what has not finished is shown as such
        others: more of them
        to: folder or URI for comparison.csv, comparison.parquet, pictures and index.html
    """
    from pipeline.pages.comparison_page import write
    from pipeline.results.comparison import compare, text

    try:
        folder = _target(to)
        found = _read_all([run, *others])
        if not found:
            print("compare.py: none of the runs can be read", file=sys.stderr)
            return 1
        compared = compare(found)
        write(compared, folder, title="Comparison of " + ", ".join(compared.runs))
        print(text(compared))
    except (ValueError, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 1
    print(f"\n  page      {folder.uri}/{PAGE}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 and the comparison, 1 and what went wrong, or 2 for wrong usage."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    return tyro.cli(_compare_runs, prog="compare.py", args=arguments)


if __name__ == "__main__":
    sys.exit(main())
