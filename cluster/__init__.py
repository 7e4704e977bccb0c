"""Ray, and nothing else: functions go in, and run on whatever machines there are."""
