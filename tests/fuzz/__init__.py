"""Hostile input, made from real input by mutation: engine, seeds, targets, a runner with a ledger."""
