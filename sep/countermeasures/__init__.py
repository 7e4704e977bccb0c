"""What an adversary may do against the protection: a registry, and one file a kind."""
