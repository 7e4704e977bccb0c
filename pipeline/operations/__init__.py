"""What verify, export and plan do."""
