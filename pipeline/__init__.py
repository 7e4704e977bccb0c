"""The pipeline: pack, surrogate, protect, victim, report. The only code that touches files and trackers."""
