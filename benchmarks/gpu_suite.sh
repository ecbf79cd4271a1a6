#!/usr/bin/env bash
# What only a GPU can prove, in parts under time limits. Made for a GPU machine without a network: it needs a bare copy
# of this repository and a Python with PyTorch, nothing installed.
#
#   benchmarks/gpu_suite.sh [RESULTS]         run the parts; read RESULTS/summary.md first. Without a name, RESULTS is
#                                             benchmarks/results/<date>_<card>. Started again, it continues.
#   benchmarks/gpu_suite.sh prepare DIR       before: download wheels for Python 3.12, in folders that can be carried
#   benchmarks/gpu_suite.sh images DIR        before: about 96 PNGs, real ones of DISTCXR_NIH_ROOT or phantoms
#   benchmarks/gpu_suite.sh merge RESULTS FROM...   after: one folder of the results of several calls
#
#   PYTHON=python3              the interpreter (default: .venv/bin/python where it is, else python3)
#   PARTS="preflight tests"     some of: preflight tests sanitize decode step runs dali ranks (default: all; "" none)
#   LIMIT_TESTS=310             seconds of a part, LIMIT_<PART>; what it had when it was stopped is kept
#   WHEELS=DIR/first:DIR/second-1   folders of `prepare`; installed once into SCRATCH, pieces joined when all are there
#   DISTCXR_NIH_ROOT=DIR        real images, or what `images` made; without it phantoms are drawn in SCRATCH
#   SCRATCH=DIR                 what is kept between calls (default: a folder in TMPDIR)
#   FORCE=1                     run parts that have finished, too
#   DRY=1                       tiny sizes, to try the suite itself; always so without a GPU
#   ARCH=90                     prepare: the architecture of the code that large libraries keep; `all` keeps all
#
# RESULTS holds summary.md, results.json, logs.txt.gz and trace.json.gz. The status is 0 where nothing failed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
export PYTHONPATH=$root/benchmarks:$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m gpu_suite "$@"
