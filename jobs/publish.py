"""Publish a bundle with its model card: `lesioncast publish` as a script for `ray job submit`.

    python jobs/publish.py BUNDLE --evaluation FOLDER --log FILE --release 1.0.0 --change TEXT \\
        --output FOLDER

The job itself is in `lesioncast.jobs.publish`.
"""

import sys

from lesioncast.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
