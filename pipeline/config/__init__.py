"""What a run is configured by: the schema, its presets, and the command line. Nothing is imported here."""
