#!/usr/bin/env bash
# Protect the images of a folder, FOLDER/<class>/*, and write them as PNGs:
#   docs/examples/protect_a_folder.sh FOLDER RUN RELEASE [settings of pipeline/run.py]
# The same command goes on where an interrupted one stopped.
set -euo pipefail
folder=$1 run=$2 release=$3
shift 3

# No victims, so no test images are needed. --executor local works in this process, without Ray.
python pipeline/run.py --data "$folder" --run "$run" --stages pack surrogate protect \
    --executor local --tracking-uri none "$@"

# Check the run from its files alone: every image, label and grey level.
python pipeline/verify.py --run "$run"

# Give the images back under their original names; the folder must be new or empty.
python pipeline/export.py --run "$run" --to "$release"
