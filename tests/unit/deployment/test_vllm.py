"""Engine vllm in the API and in the RayService; what has no GPU refuses it with a reason."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from slipway_api.deployment import DeploymentSpec
from slipway_api.serving import VllmConfig
from slipway_cli.manifests import Manifest
from slipway_cli.validation import check
from slipway_local.ray_runner.admission import refuse_impossible
from slipway_local.ray_runner.errors import InvalidSpec
from slipway_local.ray_runner.resources import Resources
from slipway_local.ray_runner.service_spec import read_rayservice
from slipway_serving.vllm.config import llm_config

from .world import World

VLLM = {"vllm": {"maxBatch": 64}}
NF4 = {"nf4": {}, "heldOut": {"sources": [{"uri": "s3://texts"}]}}
GPUS = {"min": 1, "max": 1, "resources": {"cpu": "8", "memory": "64Gi", "gpu": 2}}


def problems(**spec: Any) -> str:
    full = {"model": {"uri": "s3://models/m"}} | spec
    obj = {"apiVersion": "slipway.dev/v1alpha1", "kind": "Deployment", "metadata": {"name": "chat"}, "spec": full}
    return "; ".join(str(problem) for problem in check([Manifest(obj, "here")]))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, ""),
        ({"engine": {"transformers": {"maxBatch": 2}}}, ""),
        ({"engine": VLLM, "replicas": GPUS}, ""),
        ({"engine": VLLM}, "engine.vllm needs GPUs: set replicas.resources.gpu"),
        ({"replicas": GPUS}, "engine.transformers drives at most one GPU"),
        ({"engine": {}}, "exactly one of transformers, vllm must be set"),
        ({"engine": VLLM | {"transformers": {}}, "replicas": GPUS}, "exactly one of transformers, vllm must be set"),
        ({"engine": VLLM, "replicas": GPUS, "model": {"uri": "https://x.example/m"}}, "engine.vllm loads from a path"),
        ({"engine": {"vllm": {"gpuMemoryPart": "1.5"}}, "replicas": GPUS}, "gpuMemoryPart must be above 0"),
        ({"engine": VLLM, "replicas": GPUS, "compression": NF4}, "compression is made for"),
    ],
)
def test_rules_of_the_schema(spec: dict[str, Any], words: str) -> None:
    found = problems(**spec)
    assert words in found
    assert bool(found) == bool(words)


def test_the_built_in_engine_is_the_default() -> None:
    engine = DeploymentSpec.model_validate({"model": {"uri": "/m"}}).engine
    assert engine.transformers is not None
    assert engine.vllm is None


def application(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.config()["applications"][1]
    return found


def test_it_is_rendered_as_an_adaptor_and_rays_own_server() -> None:
    world = World.of(engine=VLLM, replicas=GPUS | {"max": 3})
    world.run()
    app, version = application(world), world.stable()
    assert app["import_path"] == "slipway_serving.vllm.app:engine"
    config = VllmConfig.model_validate(app["args"])
    assert (config.version, config.max_batch, config.gpus) == (version, 64, 2)
    adaptor, holder = app["deployments"]
    assert adaptor == {"name": "Engine", "num_replicas": 1}
    assert holder["name"] == f"LLMServer:{version}"
    assert (holder["autoscaling_config"]["min_replicas"], holder["autoscaling_config"]["max_replicas"]) == (1, 3)


def test_the_engines_settings_reach_it() -> None:
    asked = {"precision": "fp16", "maxContextTokens": 4096, "gpuMemoryPart": "0.5", "prefixCaching": False}
    world = World.of(engine={"vllm": asked}, replicas=GPUS)
    world.run()
    arguments = llm_config(VllmConfig.model_validate(application(world)["args"]))["engine_kwargs"]
    assert arguments["dtype"] == "float16"
    assert arguments["max_model_len"] == 4096
    assert arguments["gpu_memory_utilization"] == 0.5
    assert arguments["enable_prefix_caching"] is False


def test_the_number_of_replicas_is_always_a_range_and_gpus_make_a_version() -> None:
    world = World.of(engine=VLLM, replicas=GPUS)
    world.run()
    holder, before = application(world)["deployments"][1], world.stable()
    assert (holder["autoscaling_config"]["min_replicas"], holder["autoscaling_config"]["max_replicas"]) == (1, 1)
    world.change(replicas=GPUS | {"resources": {"cpu": "8", "memory": "64Gi", "gpu": 4}})
    world.run(120)
    assert world.stable() != before, "another tensor parallel size restarts the engine: it is rolled out"


def test_a_machine_without_gpus_refuses_it() -> None:
    world = World.of(engine=VLLM, replicas=GPUS)
    world.run()
    assert world.ray_service is not None
    service = read_rayservice(world.ray_service)
    with pytest.raises(InvalidSpec, match=r"this machine has .* and no GPU"):
        refuse_impossible(service.need, Resources(Decimal(64), Decimal(0), Decimal(10**12)), what="service", path="x")
