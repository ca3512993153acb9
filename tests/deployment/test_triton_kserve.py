"""What `resnet-deploy triton --kserve` writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from triton_bundles import ANY_SIZE, add_engine, bundle_fixture, refused

__all__ = ["bundle_fixture"]

Made = Callable[..., Path]


def test_kserve_gets_an_image_and_a_service_that_runs_it(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made = bundle(**ANY_SIZE)
    add_engine(made)
    arguments = ("triton", made, "--ensemble", "--output", tmp_path / "repository")
    kserve = ("--kserve", tmp_path / "deploy", "--image", "registry.example.com:5000/team/resnet_20:1.2")
    ran = deploy(*arguments, *kserve)
    assert ran.code == 0
    assert f"wrote        {tmp_path / 'deploy' / 'Dockerfile'}" in ran.out
    service = yaml.safe_load((tmp_path / "deploy" / "inference_service.yaml").read_text())
    (container,) = service["spec"]["predictor"].pop("containers")
    assert service == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "resnet-20"},
        "spec": {"predictor": {"volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]}},
    }
    assert container == {
        "name": "kserve-container",
        "image": "registry.example.com:5000/team/resnet_20:1.2",
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": 8080}},
        "startupProbe": {
            "httpGet": {"path": "/v2/health/live", "port": 8080},
            "periodSeconds": 10,
            "failureThreshold": 60,
        },
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    lines = (tmp_path / "deploy" / "Dockerfile").read_text().splitlines()
    instructions = [line.split(" ", 1) for line in lines if not line.startswith("#")]
    assert [word for word, _ in instructions] == ["ARG", "FROM", "RUN", "COPY", "EXPOSE", "CMD"]
    assert dict(instructions)["FROM"] == "${SERVER_IMAGE}"
    assert json.loads(dict(instructions)["CMD"])[:3] == [
        "tritonserver",
        "--model-repository=/models",
        f"--http-port={container['ports'][0]['containerPort']}",
    ]


def test_kserves_predictor_is_a_pod_by_kubernetes_schema(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    schemas = pytest.importorskip("kubernetes_validate")
    made = bundle(**ANY_SIZE)
    add_engine(made)
    kserve = ("--ensemble", "--kserve", tmp_path / "deploy", "--image", "image")
    assert deploy("triton", made, "--output", tmp_path / "repository", *kserve).code == 0
    service = yaml.safe_load((tmp_path / "deploy" / "inference_service.yaml").read_text())
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": service["spec"]["predictor"]}
    schemas.validate(pod, schemas.latest_version(), strict=True)
    pod["spec"]["containers"][0]["readiness"] = pod["spec"]["containers"][0].pop("readinessProbe")
    with pytest.raises(schemas.ValidationError, match="readiness"):
        schemas.validate(pod, schemas.latest_version(), strict=True)


def test_without_a_decoder_or_a_gpu_kserve_asks_for_neither(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    output, kserve = tmp_path / "repository", ("--kserve", tmp_path / "deploy", "--image", "20-resnet")
    assert deploy("triton", bundle(), "--output", output, *kserve).code == 0
    assert "pip" not in (tmp_path / "deploy" / "Dockerfile").read_text()
    service = yaml.safe_load((tmp_path / "deploy" / "inference_service.yaml").read_text())
    assert service["metadata"] == {"name": "model-20-resnet"}
    predictor = service["spec"]["predictor"]
    assert "resources" not in predictor["containers"][0]
    assert "volumeMounts" not in predictor["containers"][0]
    assert "volumes" not in predictor


def test_models_that_are_there_already_are_served_too(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    decoded, plain, output = bundle(**ANY_SIZE), bundle("plain", name="plain"), tmp_path / "repository"
    add_engine(decoded)
    assert deploy("triton", decoded, "--ensemble", "--output", output).code == 0
    ran = deploy("triton", plain, "--output", output, "--kserve", tmp_path / "deploy", "--image", "image")
    assert "docker run --rm --gpus all --shm-size 1g -p" in ran.out
    assert "note" not in ran.out
    assert "pip install" in (tmp_path / "deploy" / "Dockerfile").read_text()
    predictor = yaml.safe_load((tmp_path / "deploy" / "inference_service.yaml").read_text())["spec"]["predictor"]
    assert predictor["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert predictor["volumes"][0]["name"] == "shm"


@pytest.mark.parametrize(
    ("config", "gpu"),
    [
        ('platform: "tensorrt_plan"\n', True),
        ("instance_group [ { count: 1, kind : KIND_GPU } ]\n", True),
        ('backend: "python"  # kind: CPU\n  # kind: KIND_GPU\n', False),
    ],
)
def test_of_others_models_is_said_that_they_may_need_more(
    deploy: Any, bundle: Made, tmp_path: Path, config: str, gpu: bool
) -> None:
    output, theirs = tmp_path / "repository", tmp_path / "repository" / "the\rirs"
    theirs.mkdir(parents=True)
    (theirs / "config.pbtxt").write_text(config)
    found = deploy("triton", bundle(), "--output", output, "--json").json["server"]
    assert found == {"gpu": gpu, "pillow": False, "shared_memory": True, "others": ["the\rirs"]}
    kserve = ("--kserve", tmp_path / "deploy", "--image", "image")
    ran = deploy("triton", bundle("two", name="two"), "--output", output, *kserve)
    assert "not written by this command, and may need more: the\\rirs" in ran.out
    lines = (tmp_path / "deploy" / "Dockerfile").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["#"] * 5 + ["ARG", "FROM", "COPY", "EXPOSE", "CMD"]
    assert lines[4] == "#   'the\\rirs'"


def test_a_path_in_the_dockerfile_stays_one_word_of_a_comment(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    output = tmp_path / "to\nRUN serve"
    assert deploy("triton", bundle(), "--output", output, "--kserve", tmp_path, "--image", "image").code == 0
    lines = (tmp_path / "Dockerfile").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["#", "#", "#", "ARG", "FROM", "COPY", "EXPOSE", "CMD"]
    assert lines[2].endswith(f"{tmp_path}/Dockerfile '{tmp_path}/to\\nRUN serve'")


def test_kserves_files_are_not_written_over_others_or_into_the_repository(
    deploy: Any, bundle: Made, tmp_path: Path
) -> None:
    made, output = bundle(), tmp_path / "repository"
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "odd" / "Dockerfile").mkdir(parents=True)
    for folder, said in {
        tmp_path: "exists, and is another; give --force to replace it",
        output / "kserve": f"lies in {output}",
        made: f"lies in {made}",
        tmp_path / "Dockerfile" / "kserve": f"{tmp_path / 'Dockerfile'} is not a folder",
        tmp_path / "odd": f"{tmp_path / 'odd' / 'Dockerfile'} is not a file",
    }.items():
        ran = deploy("triton", made, "--output", output, "--kserve", folder, "--image", "image")
        assert said in refused(ran, output, 2)
    assert (tmp_path / "Dockerfile").read_text() == "FROM scratch\n"


def test_the_next_release_replaces_both_files_by_force(deploy: Any, bundle: Made, tmp_path: Path) -> None:
    made, output, folder = bundle(), tmp_path / "repository", tmp_path / "deploy"

    def release(tag: int, *options: str) -> Any:
        image = ("--kserve", folder, "--image", f"image:{tag}", *options)
        return deploy("triton", made, "--output", output, "--version", tag, *image)

    assert release(1).code == 0
    ran = release(2)
    assert (ran.code, "exists, and is another; give --force" in ran.error) == (2, True)
    assert not (output / "tiny-fp32" / "2").exists()
    assert release(2, "--force").code == 0
    assert yaml.safe_load((folder / "inference_service.yaml").read_text())["metadata"] == {"name": "image"}
    assert 'image: "image:2"' in (folder / "inference_service.yaml").read_text()
    assert "--tag image:2 " in (folder / "Dockerfile").read_text()
    assert (output / "tiny-fp32" / "2").is_dir()
    (folder / "Dockerfile").unlink()
    (folder / "Dockerfile").mkdir()
    ran = release(3, "--force")
    assert (ran.code, "is not a file" in ran.error) == (2, True)
