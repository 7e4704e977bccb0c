"""The work of the commands verify, detect, export and plan."""
