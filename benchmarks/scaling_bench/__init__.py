"""The parts of `benchmarks/scaling.py`.

worker.py ──► rows ──► fit.py ──► model.py ──► table.py
one world,             what the   a step on    measured, checked,
measured               rows has   N GPUs       predicted
"""
