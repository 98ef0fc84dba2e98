"""Evaluate a bundle on held-out subjects: `lesioncast evaluate` as a script for `ray job submit`.

    python jobs/evaluate.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.evaluate`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
