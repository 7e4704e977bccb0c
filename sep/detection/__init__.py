"""Detectors, by which an adversary may tell protected images from clean ones of the same source."""
