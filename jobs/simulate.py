"""Simulate a trial as a BIDS dataset: `lesioncast simulate` as a script for `ray job submit`.

    python jobs/simulate.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.simulate`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["simulate", *sys.argv[1:]]))
