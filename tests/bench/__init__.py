"""Benchmarks: every figure is a ratio to a peer that ran in the same minute on the same machine."""
