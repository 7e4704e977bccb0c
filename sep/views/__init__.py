"""Views: what may happen to a stored picture before a network sees it. A registry, one file a kind, and mixes of several."""
