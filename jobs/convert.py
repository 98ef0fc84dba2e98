"""Convert a BIDS trial to a Zarr store: `lesioncast convert` as a script for `ray job submit`.

    python jobs/convert.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.convert`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
