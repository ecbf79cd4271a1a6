"""The parts of `benchmarks/loaders.py`.

lanes.py ──► measure.py ──► table.py ──► answer.py, plot.py
what to      processes,     rows with    need, advice,
measure      windows        ratios       bars, picture
                │
             rank.py ──► candidates.py, cached.py, packed.py: the loaders themselves, each in processes of its own;
                        product.py: those of the product, by its own functions
"""
