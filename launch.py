"""Train a recipe:  accelerate launch launch.py RECIPE [key=value ...] [--print] [--test CHECKPOINT ...]"""

import sys

from distcxr.interrupt import without_traceback
from distcxr.launch import main

if __name__ == "__main__":
    without_traceback()
    sys.exit(main())
