"""What lies where in a run, and how it is read and written: the only room that knows file systems."""
