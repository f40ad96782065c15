"""What a worker asks Ray for."""

from __future__ import annotations

import pytest

from seedtune.config.config import Config
from seedtune.engines.ray import worker_spec
from seedtune.errors import ConfigError


def of(**ray) -> Config:
    return Config(engine="ray", task="toy", model="toy", ray={"engine": "toy", "workers": 1, **ray})


def test_cores_gpus_and_other_resources_are_asked_for_by_rays_names():
    config = of(address="auto", resources={"CPU": 3, "GPU": 0.5, "fast_disk": 1})
    needs = worker_spec.needs_of(config, "toy", 4.0)
    assert needs == {"num_cpus": 3.0, "num_gpus": 0.5, "resources": {"fast_disk": 1.0}}
    assert worker_spec.cores_of(config) == 3.0


def test_no_gpu_may_be_asked_for_where_there_are_some():
    config = of(address="auto", engine="transformers")
    assert worker_spec.needs_of(config, "transformers", 4.0) == {"num_cpus": 1.0, "num_gpus": 1.0}
    none = of(address="auto", engine="transformers", resources={"GPU": 0})
    assert worker_spec.needs_of(none, "transformers", 4.0)["num_gpus"] == 0.0


def test_this_machine_alone_has_cores_and_gpus_only():
    worker_spec.check(of(resources={"CPU": 1, "GPU": 1}), 1.0)
    with pytest.raises(ConfigError, match=r"ray.resources=\{'fast_disk': 1.0\} are of a cluster"):
        worker_spec.check(of(resources={"CPU": 1, "fast_disk": 1}), 1.0)


@pytest.mark.parametrize("wrong", [{"CPU": 0}, {"GPU": 1.5}, {"fast_disk": 0}])
def test_amounts_that_ray_cannot_give_are_refused(wrong):
    with pytest.raises(ConfigError, match="resources="):
        Config.create({"engine": "ray", "ray": {"resources": wrong}})
