"""What MLflow is told of a run. Only the driver talks to it."""
