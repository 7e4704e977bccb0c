"""The tests, in the folders of what they test."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the project: workers and processes that tests start import from here
