"""The parts of training that surrogates and victims share, and their tasks."""
