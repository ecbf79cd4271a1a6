"""`python -m distcxr.cli VERB ...`: the `distcxr` command where it is not on the PATH."""

import sys

from distcxr.cli import main

sys.exit(main())
