"""Train stage 1, the UNet: `lesioncast pretrain` as a script for `ray job submit`.

    python jobs/pretrain.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.pretrain`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
