"""Forecast subjects under every arm: `lesioncast forecast` as a script for `ray job submit`.

    python jobs/forecast.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.forecast`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["forecast", *sys.argv[1:]]))
