"""Ways to protect: a registry, and one file a method."""
