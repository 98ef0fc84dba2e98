"""Train stage 2, the ControlNet: `lesioncast finetune` as a script for `ray job submit`.

    python jobs/finetune.py --config jobs/configs/demo.yaml

The job itself is in `lesioncast.jobs.finetune`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
