"""Files and folders of a run, and how they are read and written. No other room knows file systems."""
