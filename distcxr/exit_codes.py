"""What a process ends with when it did not end well; 0 is the rest. The docs list them in docs/cluster.md."""

UNEXPECTED = 1
"""An error that nobody foresaw; the traceback is in the log."""
USER = 2
"""A wrong recipe, option or file, diverged training: the same command would only fail again."""
ENVIRONMENT = 3
"""A full, failing or vanished disk, a full GPU, a dead data worker: the same command resumes once that is seen to."""
LOST_RANK = 4
"""Another rank has ended, and that one's end has the reason: the same command resumes."""
STALLED = 75
"""EX_TEMPFAIL of <sysexits.h>: a rank makes no progress; the same command may well succeed."""
