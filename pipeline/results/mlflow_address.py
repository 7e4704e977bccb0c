"""The address at which MLflow shows the runs of an experiment, with our columns and charts."""

from __future__ import annotations

HOST, PORT = "127.0.0.1", 5000  # of `make ui`
VIEW = "protection"  # key of the view that the tracker saves in the experiment


def runs_address(server: str = f"http://{HOST}:{PORT}", experiment: str = "1") -> str:
    """Return the address of an experiment's runs; a run's own database has one experiment, with id 1."""
    return f"{server.rstrip('/')}/{runs_path(experiment)}"


def runs_path(experiment: str) -> str:
    """Return the part of the address after the server; without its last setting MLflow's pages are those for language models."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
