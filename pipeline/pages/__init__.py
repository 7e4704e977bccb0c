"""The pages that people look at, and the pictures on them."""
