"""Noticing a rank that makes no progress: who it is, where, and an end that can be resumed.

    main thread ──► signs: attributes alone ◄── watch: a thread of every rank
                                                  │ writes RUN/.ranks/rank0 and, in a stall, reads the others'
                                                  └─► missing: who holds up the rest ──► account: stalled.txt, exit 75

No collective and no store takes part: both hang with the rank that is missing. Knows no torch, and starts before it.
"""
