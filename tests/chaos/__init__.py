"""Real processes, really killed: a running node under SIGKILL while studies flow and the archive comes and goes.

A *round* is one node from its first start to its last report: ten studies, about twelve kills, then a calm in which
everything has to end. ``python -m tests.chaos`` runs rounds and keeps a ledger of them (decision 0121).
"""
