"""Configuration of a run: the schema, its presets, and the command line. Nothing is imported here."""
