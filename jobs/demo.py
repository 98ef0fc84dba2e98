"""Run the whole system on one machine: `lesioncast demo` as a script for `ray job submit`.

    python jobs/demo.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.demo`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
