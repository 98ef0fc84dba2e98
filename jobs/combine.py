"""Combine bundles of different training seeds: `lesioncast combine` as a script.

    python jobs/combine.py out/seed0/bundle out/seed1/bundle --store out/seed0/store.zarr \
        --output out/combined/bundle

The job itself is in `lesioncast.jobs.combine`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["combine", *sys.argv[1:]]))
