from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The cluster launcher's file, as Ray would read it."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return content


def test_the_cluster_file_satisfies_rays_schema(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_the_schema_would_refuse_a_mistake(cluster: dict[str, Any]) -> None:
    cluster["head_node_type"] = "hed"
    with pytest.raises(Exception, match="head_node_type"):
        validate_config(prepare_config(cluster))


def test_images_hold_the_pinned_ray_and_a_python_the_project_runs_on(cluster: dict[str, Any]) -> None:
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=3.")
    for image in (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]):
        found = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)(-gpu)?", image)
        assert found, image
        assert found[1] == PINNED["ray"]
        assert int(found[2]) >= int(oldest)
    assert cluster["docker"]["worker_image"].endswith("-gpu")


def test_machines_install_the_pinned_versions_of_this_project(cluster: dict[str, Any]) -> None:
    (command,) = cluster["setup_commands"]
    folder = next(there for there, here in cluster["file_mounts"].items() if here == ".")
    assert command == f"pip install --constraint {folder}/constraints.txt {folder}"


def test_the_head_does_no_work_and_gpus_come_and_go(cluster: dict[str, Any]) -> None:
    head, worker = cluster["available_node_types"]["head"], cluster["available_node_types"]["gpu_worker"]
    assert head["resources"] == {"CPU": 0}
    assert worker["min_workers"] == 0 < worker["max_workers"] <= cluster["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert cluster["idle_timeout_minutes"] > 0


def test_no_port_is_open_to_strangers_and_no_key_is_written_down(cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert all("IamInstanceProfile" in kind["node_config"] for kind in cluster["available_node_types"].values())
    assert not re.search(r"AKIA|aws_secret|aws_access_key", (ROOT / "ray_cluster.yaml").read_text(), re.IGNORECASE)
