"""Write the quality report of a store: `lesioncast qc` as a script for `ray job submit`.

    python jobs/qc.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.qc`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["qc", *sys.argv[1:]]))
