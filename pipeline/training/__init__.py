"""What the trainings of surrogates and victims share."""
