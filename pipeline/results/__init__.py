"""The results of a run: its figures, and their meaning in words."""
