"""The files of a deployment: Ray reads them, and what they say is what this program takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from videomaker.serve.config import load_config

DEPLOY = Path(__file__).parent.parent / "deploy" / "ray"


def applications():
    serve = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    service = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    return {"serve": serve, "kuberay": yaml.safe_load(service["spec"]["serveConfigV2"])}


@pytest.mark.parametrize("file", ["serve", "kuberay"])
def test_settings_of_the_application_are_known(file, tmp_path):
    (app,) = applications()[file]["applications"]
    assert app["import_path"] == "videomaker.serve.ray_app:build"
    assert not app["args"].keys() - {"config", "target_seconds", "min_workers", "max_workers"}
    config = load_config(data=tmp_path, **app["args"]["config"])
    assert config.files.startswith("s3://") and not config.is_loopback
    assert {deployment["name"] for deployment in app["deployments"]} == {"Api", "Worker"}


@pytest.mark.parametrize("file", ["serve", "kuberay"])
@pytest.mark.scale
def test_ray_reads_it(file):
    schema = pytest.importorskip("ray.serve.schema")
    schema.ServeDeploySchema.model_validate(applications()[file])
