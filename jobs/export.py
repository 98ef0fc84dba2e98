"""Export images onto the patients' own grids: `lesioncast export` as a script for `ray job submit`.

    python jobs/export.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.export`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
