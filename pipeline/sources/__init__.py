"""Sources of images. Each kind is scanned into one list of entries and has one reader."""
