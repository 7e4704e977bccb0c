"""What people look at: pages and the pictures on them."""
