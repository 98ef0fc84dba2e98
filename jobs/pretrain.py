"""Train stage 1, the UNet: `lesioncast pretrain` as a script for `ray job submit`.

    python jobs/pretrain.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.pretrain`.
"""

import sys

from lesioncast.jobs.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
