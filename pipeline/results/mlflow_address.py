"""The address at which MLflow shows the runs of an experiment, with our columns and charts."""

from __future__ import annotations

import shlex

from pipeline.results.commands import here

HOST, PORT = "127.0.0.1", 5000  # of `make ui`
CLASSIC = "workflowType=machine_learning"  # of an address; without it MLflow's pages are those for language models
VIEW = "protection"  # key of the view that the tracker saves in the experiment


def runs_address(server: str = f"http://{HOST}:{PORT}", experiment: str = "1") -> str:
    """Return the address of an experiment's runs; a run's own database has one experiment, with id 1."""
    return f"{server.rstrip('/')}/{runs_path(experiment)}"


def how_to_look(uri: str, experiment: str, name: str, own: str | None = None) -> str:
    """Return where to look at the runs of an experiment while they go on.

    Args:
        uri: of the tracker.
        experiment: its id.
        name: its name.
        own: the run folder, if the tracker is the database in it.
    """
    if own:
        return f"{here(f'make ui RUN={shlex.quote(own)}')}, then {runs_address()}"
    if uri.startswith("http"):
        return runs_address(uri, experiment)
    if uri.startswith("databricks"):
        return f"the experiment {name} in the workspace of {uri}"
    server = here(f"python -m mlflow server --port {PORT} --backend-store-uri {shlex.quote(uri)}")
    return f"{server}, then {runs_address(experiment=experiment)}"


def runs_path(experiment: str) -> str:
    """Return the part of the address after the server."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{CLASSIC}"
