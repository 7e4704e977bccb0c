"""Tracking of a run in MLflow. Only the driver talks to it."""
