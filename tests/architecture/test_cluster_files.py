"""Cluster files, checked against the schemas of their readers, the pinned versions and each other."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private import ray_constants
from ray._private.runtime_env import packaging
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import session
from tests import ROOT

PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CODE = "/home/ray/sep"  # the project's folder in every container
AWS, ONPREM, RAYJOB, DOCKERFILE = "ray_cluster.yaml", "cluster/onprem.yaml", "cluster/rayjob.yaml", "cluster/Dockerfile"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


@pytest.fixture(params=[AWS, ONPREM])
def launched(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A file of the cluster launcher, as Ray reads it."""
    return documents(request.param)[0]


@pytest.fixture
def aws() -> dict[str, Any]:
    return documents(AWS)[0]


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return documents(RAYJOB)[1]


@pytest.fixture
def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, arguments)."""
    text = re.sub(r"\\\n\s*", "", (ROOT / DOCKERFILE).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


# The cluster launcher: Ray's own schema.


def test_the_launchers_files_satisfy_rays_schema(launched: dict[str, Any]) -> None:
    validate_config(prepare_config(launched))


def test_the_schema_would_refuse_a_mistake(launched: dict[str, Any]) -> None:
    launched["idle_minutes"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        validate_config(prepare_config(launched))


def test_machines_install_the_pinned_versions_of_this_project(launched: dict[str, Any]) -> None:
    assert launched["setup_commands"] == [f"pip install --constraint {CODE}/constraints.txt {CODE}"]
    assert launched["file_mounts"][CODE] == "."


def test_the_head_of_aws_does_no_work_and_gpus_come_and_go(aws: dict[str, Any]) -> None:
    head, worker = aws["available_node_types"]["head"], aws["available_node_types"]["gpu_worker"]
    assert head["resources"] == {"CPU": 0}
    assert worker["min_workers"] == 0 < worker["max_workers"] <= aws["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert aws["idle_timeout_minutes"] > 0
    assert all("IamInstanceProfile" in kind["node_config"] for kind in aws["available_node_types"].values())


def test_own_machines_are_all_used_all_the_time() -> None:
    prepared = prepare_config(documents(ONPREM)[0])
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(prepared["provider"]["worker_ips"])
    assert "--num-cpus=0 --num-gpus=0" in prepared["head_start_ray_commands"][-1]


def test_a_launched_cluster_has_a_token_and_no_open_dashboard(launched: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in launched["docker"]["run_options"]
    assert launched["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in launched["head_start_ray_commands"][-1]
    assert not [option for option in launched["docker"]["run_options"] if "--publish" in option or option.startswith("-p")]


# Kubernetes: the fields we use, as KubeRay (1.5.1 and newer) and Kubernetes define them. The full definition takes a megabyte.

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}


def fields(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
CONTAINER = fields(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    securityContext=fields([], allowPrivilegeEscalation={"const": False}, capabilities=fields(["drop"], drop={"const": ["ALL"]})),
    resources=fields(["requests", "limits"], requests=TEXTS, limits=TEXTS),
    volumeMounts=listed(fields(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
TEMPLATE = fields(
    ["spec"],
    spec=fields(
        ["containers"],
        serviceAccountName=TEXT,
        automountServiceAccountToken={"type": "boolean"},
        restartPolicy={"const": "Never"},  # the autoscaler expects removed machines to stay away
        nodeSelector=TEXTS,
        tolerations=listed(fields(["key", "operator"], key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)),
        securityContext=fields([], runAsNonRoot={"const": True}, seccompProfile=fields(["type"], type=TEXT)),
        containers=listed(CONTAINER),
        volumes=listed(fields(["name", "emptyDir"], name=TEXT, emptyDir=fields([], medium={"const": "Memory"}, sizeLimit=TEXT))),
    ),
)
HEAD = fields(["rayStartParams", "template"], serviceType={"const": "ClusterIP"}, rayStartParams=TEXTS, template=TEMPLATE)
WORKERS = fields(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
CLUSTER = fields(
    ["rayVersion", "authOptions", "headGroupSpec"],  # authentication needs the version
    rayVersion=TEXT,
    authOptions=fields(["mode"], mode={"const": "token"}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=fields([], idleTimeoutSeconds=COUNT),
    headGroupSpec=HEAD,
    workerGroupSpecs=listed(WORKERS),
)
RAY_JOB = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields(["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}),
    spec=fields(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)


def test_the_ray_job_has_the_fields_of_its_definition(rayjob: dict[str, Any]) -> None:
    jsonschema.validate(rayjob, RAY_JOB)
    account = documents(RAYJOB)[0]
    assert (account["apiVersion"], account["kind"]) == ("v1", "ServiceAccount")
    del rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    with pytest.raises(jsonschema.ValidationError, match="groupName"):
        jsonschema.validate(rayjob, RAY_JOB)


def test_the_ray_job_scales_from_nothing_and_leaves_nothing(rayjob: dict[str, Any]) -> None:
    spec, cluster = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == 0 < workers["maxReplicas"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert int(re.findall(r"--workers (\d+)", spec["entrypoint"])[0]) <= workers["maxReplicas"]
    for group, gpus in ((cluster["headGroupSpec"], None), (workers, "1")):
        pod = group["template"]["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        assert pod["serviceAccountName"] == documents(RAYJOB)[0]["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_ray_job_runs_the_code_of_the_image(rayjob: dict[str, Any], instructions: list[tuple[str, str]]) -> None:
    program, script, *_ = shlex.split(rayjob["spec"]["entrypoint"])
    assert (program, script) == ("python", f"{CODE}/pipeline/run.py")
    assert ("WORKDIR", CODE) in instructions
    assert f"PYTHONPATH={CODE}" in dict(instructions)["ENV"].split()
    images = set(re.findall(r"image: (.*)", (ROOT / RAYJOB).read_text()))
    assert images == {f"REGISTRY/sep:{PROJECT['version']}"}
    assert all(f"--tag {image} " in (ROOT / name).read_text() for image in images for name in (RAYJOB, DOCKERFILE))


def test_the_command_in_the_ray_jobs_head_fills_in_all_that_is_left_open() -> None:
    text = (ROOT / RAYJOB).read_text()
    (command,) = re.findall(r"# +(sed .*) \| kubectl apply", text)
    filled = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"REGISTRY|BUCKET|ACCOUNT", text)
    assert not re.findall(r"REGISTRY|BUCKET|ACCOUNT", str(list(yaml.safe_load_all(filled))))


# The image.


def test_the_image_installs_what_is_pinned_before_it_takes_the_code(instructions: list[tuple[str, str]]) -> None:
    assert [name for name, _ in instructions] == ["FROM", "WORKDIR", "COPY", "RUN", "COPY", "COPY", "COPY", "ENV", "USER"]
    copied = [shlex.split(rest)[:-1] for name, rest in instructions if name == "COPY"]
    assert copied == [["pyproject.toml", "constraints.txt"], ["sep"], ["cluster"], ["pipeline"]]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert kept[0] == "*"
    assert {line[1:] for line in kept if line.startswith("!")} == {source for sources in copied for source in sources}
    needs, install = dict(instructions)["RUN"].split(" && ")
    assert install == "pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/needs.txt"
    program, *arguments = shlex.split(needs.removesuffix(" > /tmp/needs.txt"))
    assert program == "python"
    printed = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == PROJECT["dependencies"]


def test_the_image_does_not_run_as_root(instructions: list[tuple[str, str]]) -> None:
    assert int(dict(instructions)["USER"]) > 0


# All files together.


@pytest.mark.parametrize("name", [AWS, ONPREM, RAYJOB, DOCKERFILE])
def test_every_file_holds_the_pinned_ray_a_fitting_python_and_no_secret(name: str) -> None:
    text = (ROOT / name).read_text()
    for version, python in re.findall(r"rayproject/ray:([\d.]+)-py3(\d+)", text):
        assert version == PINNED["ray"]
        assert int(python) >= int(PROJECT["requires-python"].removeprefix(">=3."))
    assert set(re.findall(r"\d+\.\d+\.\d+(?=[-\"'])", text)) <= {PINNED["ray"]}
    assert "0.0.0.0" not in text
    assert not re.search(r"AKIA|secret_?(access_?)?key|access_key|password:|LoadBalancer|NodePort|Ingress", text, re.IGNORECASE)


@pytest.mark.parametrize("name", [AWS, ONPREM, RAYJOB])
def test_shared_memory_holds_any_object_store_that_ray_plans(name: str) -> None:
    sizes = re.findall(r"(?:--shm-size=|sizeLimit: )(\d+)(?:g|Gi)\b", (ROOT / name).read_text())
    assert sizes
    assert all(0.95 * int(size) * 2**30 >= ray_constants.REQUIRE_SHM_SIZE_THRESHOLD for size in sizes)


@pytest.mark.parametrize("name", [AWS, ONPREM, RAYJOB, DOCKERFILE, "README.md", "docs/cluster.md"])
def test_the_environment_of_a_job_is_written_down_once(name: str) -> None:
    of_clusters = {"RAY_USAGE_STATS_ENABLED"}  # a head starts before any job, and would send usage reports
    text = (ROOT / name).read_text()
    assert not [variable for variable in session.ENVIRONMENT if variable not in of_clusters and variable in text]
    assert set(re.findall(r"RAY_USAGE_STATS_ENABLED=(\w+)", text)) <= {session.ENVIRONMENT["RAY_USAGE_STATS_ENABLED"]}
    assert "MLFLOW_DISABLE" not in text  # `pipeline/tracking/tracker.py` does this, wherever a driver runs


def test_a_jobs_package_has_the_code_and_nothing_else(tmp_path: Path) -> None:
    project = tmp_path / "project"
    own = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\0")[:-1]
    if not own:
        pytest.skip("not a git checkout: what belongs to the project is not known")
    strangers = (
        *("data/cifar10/train.parquet", "runs/a/pack/train-000000.tar", "runs/a/config.json", "release/cat/1.png", "mlruns/0/meta.yaml"),
        *("mlflow.db", "some.tar", "elsewhere/deep.parquet", ".venv/bin/python", ".git/config", "sep/__pycache__/craft.pyc"),
    )
    for name in (*own, *strangers):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes((ROOT / name).read_bytes() if name in own else b"")
    package = tmp_path / "package.zip"
    # As `ray job submit --working-dir .` does before the upload.
    excluded = ray_constants.get_runtime_env_default_excludes()
    packaging.create_package(str(project), package, include_gitignore=True, excludes=excluded)
    packed = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert packed == {name for name in own if not name.startswith("tests/")}
    assert {"pipeline/run.py", "pipeline/pages/templates/report.html.j2", "sep/craft.py", "cluster/session.py", "constraints.txt"} <= packed
    assert package.stat().st_size < 2**21
