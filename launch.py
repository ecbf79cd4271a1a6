"""Train a recipe:  accelerate launch launch.py RECIPE [key=value ...] [--print] [--test CHECKPOINT ...]"""

import sys

from distcxr.launch import main

if __name__ == "__main__":
    sys.exit(main())
