"""Where images come from: each kind of source is scanned into one list of entries and read by one reader."""
