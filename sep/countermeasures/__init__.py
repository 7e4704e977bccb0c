"""Countermeasures of an adversary against the protection: a registry, and one file for each kind."""
