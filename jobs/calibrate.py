"""Calibrate a bundle on labelled cases: `lesioncast calibrate` as a script for `ray job submit`.

    python jobs/calibrate.py out/demo/bundle out/hospital/store.zarr --output out/hospital/bundle

The job itself is in `lesioncast.jobs.calibrate`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]]))
