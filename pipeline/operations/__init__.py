"""The work of the commands verify, export and plan."""
