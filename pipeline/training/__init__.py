"""Training, as surrogates and victims share it."""
