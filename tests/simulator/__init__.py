"""A node that lives in one thread: production code on a real ledger, with everything around it under a seed.

One history is a handful of studies, a storm of faults, crashes and interleaved actors, and a calm in which all has
to come to rest. ``python -m tests.simulator`` runs many; ``--seed N`` runs one again.
"""
