#!/usr/bin/env bash
# What do more steps buy, and what do more checkpoints? Protect and measure every combination:
#   docs/examples/sweep.sh RUN [settings of pipeline/run.py]
set -euo pipefail
run=$1
shift

# Generated images, unless --data names others. All points share pack, surrogate and clean victims.
python pipeline/run.py --run "$run" --sweep protect.steps=1,2 protect.checkpoints=1,2 \
    --executor local --tracking-uri none "$@"

# The table was printed; the page is in RUN/comparison/index.html. Each point is a run of its own:
python pipeline/verify.py --run "$run/sweep/steps-2_checkpoints-2"
