"""Benchmarks: each prints a table, writes JSON under build/, and exits 1 where a target is missed."""
