"""Configs: their keys, variants and checks."""
