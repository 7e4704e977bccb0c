"""The names of the files and folders of a run: this page alone holds them, and `docs/run-folder.md` explains them.

The folder of a stage has the stage's name: `pack`, `surrogate`, `protect`, `victim`, `report`. A point of a sweep and an addition are run
folders of their own inside the run.
"""

from __future__ import annotations

# In the folder of the run
CONFIG = "config.json"  # the configuration that the finished stages were made with, and how the last start ran it
VERIFIED = "verified.json"  # the outcome of verify.py with its first faults, and the digest of the release that it looked at
CERTIFIED = "certificate.json"  # of certify.py: the certificate, and the digest of the release that it is for
DETECTION = "detection.json"  # how well detectors tell the release from clean images, and the digest of the release
CARD = "card.json"  # of reproduce.py: what has been measured, and on which machines; in `audit`, the verdict of audit.py
TRACKING = "tracking.json"  # MLflow's run ids, and the digest of everything that has been logged
DATABASE = "mlflow.db"  # MLflow's own, unless a tracking URI names another
ARTIFACTS = "mlflow"  # folder of MLflow's artifacts, beside its own database
DRIVER_LOCK = ".driver.lock"  # locked by the operating system while a driver works on the run
DRIVER = ".driver.json"  # where storage has no locks: who drives, and when they were last alive

# In the folder of every stage
STARTED = "started.json"  # what the stage was asked to do; written first
MANIFEST = "manifest.json"  # what came out; written last, and the stage is done
PARTS = "parts"  # folder of pack and protect with a table and a record of each finished shard, until the stage is done
SAMPLES = "samples.parquet"  # of pack and protect: one row per image

# In `pack`
QUARANTINE = "quarantine.parquet"  # one row per refused image, with the reason

# In `surrogate`
CHECKPOINTS = "checkpoints.json"  # index of all epochs, with hashes, loss and accuracy
WEIGHTS = "weights.pt"  # of one epoch, in its folder
RESUME = "training.pt"  # beside the weights: the state of the optimiser, to go on from

# In `protect`
SIMILARITY = "similarity.json"  # cosines between the gradients of the checkpoints
KERNELS = "kernels.json"  # with `--protect.kernels auto` on a GPU: the kernels of all shards, and the seconds that decided
CHOSEN = "chosen.parquet"  # with `--protect.share`: the keys of the images that are protected
PREPARED = "prepared"  # folder of the tensors that the method learned from the whole training set
PREPARED_RECORD = "prepared.json"  # the record of those tensors as a finished piece
EVERY_SHARD = "every-shard"  # in `prepared`, instead of a shard's name: the tensors for all shards that have none of their own

# In `victim`, beside a record for each trial
RESULTS = "results.parquet"  # one row per trial; written when all have finished
STATE = ".pt"  # after the name of an unfinished trial: its state, to go on from
UNFINISHED = "unfinished.json"  # where trials failed: the rows of the others, and the names of those that are missing

# In `report`, in `audit`, and in the folder of a comparison
PAGE = "index.html"
COMPARISON_CSV = "comparison.csv"
COMPARISON_PARQUET = "comparison.parquet"

# Anywhere
WEIGHT_FILES = (".pt", ".pth")  # ends of the names of files of weights that a user brings

# Folders inside the run
SWEEP = "sweep"  # holds a folder for each point
POINT = "point.json"  # marks the folder of a point, and holds what was swept, `{"protect.steps": 5, ...}`
SHARED: tuple[str, ...] = ("pack", "surrogate")  # stages that all points of a sweep read from the run
COMPARISON = "comparison"  # of the points of the sweep
AUDIT = "audit"  # the page and the card of audit.py
CERTIFICATE = "certificate"  # the weights that certify.py trained, so that another certificate trains nothing
ADDED = "added"  # holds a folder for each addition, `0001`, ...

# What other commands find in a release, by their names: a record in the folder of the run, which says by `RELEASE` what it is about
RECORDS = {"verify": VERIFIED, "audit": f"{AUDIT}/{CARD}", "detect": DETECTION, "certify": CERTIFIED}
RELEASE = "release_sha256"  # entry with the digest of the release

# Beside an exported folder, after its name
EXPORTED = ".export.json"  # the form of the files, the digest of each, and how lossy ones differ from the originals


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard, the same in `pack` and `protect`."""
    return f"{split}-{number:06d}.tar"


def split_of(shard: str) -> str:
    """Return the split in the file name of a shard."""
    return shard.partition("-")[0]


def finished_shard_table(shard: str) -> str:
    """Return the name, in the stage's folder, of the table of a finished shard."""
    return f"{PARTS}/{shard}.parquet"


def finished_shard_record(shard: str) -> str:
    """Return the name, in the stage's folder, of the record of a finished shard."""
    return f"{PARTS}/{shard}.json"


def prepared_file(shard: str = EVERY_SHARD) -> str:
    """Return the name, in the folder of `protect`, of the tensors for the images of a shard."""
    return f"{PREPARED}/{shard}.pt"


def trial_name(network: str, data: str, countermeasure: str, seed: int) -> str:
    """Return the name of a trial. Its `+` between countermeasures is replaced, because some object stores take it for a blank."""
    return f"{network}-{data}-{countermeasure.replace('+', '_')}-seed{seed}"


def trial_record(trial: str) -> str:
    """Return the name, in the folder of `victim`, of the record of a trial."""
    return f"{trial}.json"


def decoded_name(digest: str) -> str:
    """Return the name of a shard's decoded images in the cache of a machine."""
    return f"{digest}.pt"
