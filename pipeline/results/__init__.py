"""What a run says: its figures, and what they mean in words."""
