"""The operator's configuration: one YAML file, read once at start-up and refused as a whole when a key is unknown.

Environment variables carry identity only (POD_NAME, POD_NAMESPACE); secrets come from files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from slipway_api.base import ApiModel, Decimal, Name, Quantity


class ConfigError(Exception):
    """The configuration file cannot be used; the message names the file and the field."""


class StorageConfig(ApiModel):
    """Where runs keep what they make."""

    uri: str = Field(min_length=1, description="Prefix under which every namespace has its own folder (fsspec URI).")


class ReportsTlsConfig(ApiModel):
    """The certificate that the report endpoint serves with. Both files are read again when they change."""

    cert_file: Path = Field(description="PEM file: the certificate and what leads to its CA.")
    key_file: Path = Field(description="PEM file: its private key.")


class ReportsConfig(ApiModel):
    """The endpoint that runs report to."""

    listen: str = Field(description="host:port that the operator binds.")
    url: str = Field(description="Base URL under which runs reach it.")
    key_file: Path = Field(description="File with the key that run tokens are derived from (any bytes).")
    interval_seconds: int = Field(default=2, ge=1, le=3600, description="Seconds between a run's progress reports.")
    tls: ReportsTlsConfig | None = Field(default=None, description="Serve https. Default: plain http.")
    ca_file: Path | None = Field(
        default=None, description="CA bundle of an https url. Each attempt gets it with its token; none: the image's."
    )


class MetricsConfig(ApiModel):
    """The endpoint of /metrics, /healthz and /readyz."""

    listen: str = Field(default="0.0.0.0:8080", description="host:port that the operator binds.")


_LABEL = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
LabelKey = Annotated[str, Field(pattern=_LABEL)]
LabelValue = Annotated[str, Field(pattern=_LABEL_VALUE)]
Text = Annotated[str, Field(max_length=4096)]


def _device(name: str) -> str:
    domain = name.partition("/")[0]
    if "/" not in name or name == "nvidia.com/gpu" or domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        raise ValueError("must be an extended resource such as rdma/hca_shared_devices_a, and not what jobs ask for")
    return name


def _variable(name: str) -> str:
    if name.startswith(("RAY_", "KUBERAY_", "SLIPWAY_")):
        raise ValueError("belongs to Ray, KubeRay or Slipway")
    return name


Device = Annotated[str, Field(pattern=_LABEL), AfterValidator(_device)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"), AfterValidator(_variable)]


class TolerationConfig(ApiModel):
    """A taint of nodes that pods put up with, as in a pod's spec."""

    key: LabelKey | None = Field(default=None, description="The taint's key. Default, with Exists: each taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Whether the value counts.")
    value: LabelValue | None = Field(default=None, description="The taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect. Default: each."
    )

    @model_validator(mode="after")
    def _as_kubernetes_wants_it(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key")
        return self


class PoolPodsConfig(ApiModel):
    """What the pods that work on a pool's nodes get besides what a job asks for: how they come there, and its network.

    A job's workers, that is, or the head where the work is done there; not the head of a cluster with workers.
    """

    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description="Labels of the nodes. Default: none, and pods may come to other nodes."
    )
    tolerations: list[TolerationConfig] = Field(
        default_factory=list, max_length=64, description="Taints of the nodes that these pods put up with."
    )
    annotations: dict[LabelKey, Text] = Field(
        default_factory=dict, description="Annotations of the pods, such as the networks that they are to join."
    )
    resources: dict[Device, Annotated[int, Field(ge=1, le=1024)]] = Field(
        default_factory=dict,
        description="Devices that each worker gets, by the name of their extended resource, such as RDMA adapters.",
    )
    env: dict[Variable, Text] = Field(
        default_factory=dict,
        description="Environment variables of each worker, such as NCCL's. Not those of Ray and Slipway themselves.",
    )


class PoolConfig(ApiModel):
    """Nodes of one kind that runs may be placed on; what the plan counts with."""

    name: Name
    nodes: int = Field(ge=1, le=100_000, description="Nodes in the pool, at its largest.")
    cpus: int = Field(ge=1, description="CPUs of one node that runs may use.")
    memory: Quantity = Field(description="Memory of one node that runs may use.")
    gpus: int = Field(default=0, ge=0, description="GPUs of one node.")
    gpu_memory: Quantity | None = Field(default=None, description="Memory of one GPU. Default: not counted.")
    price_per_hour: Decimal | None = Field(
        default=None,
        description="What one node costs an hour, in the configuration's `currency`. Default: not counted.",
    )
    power_watts: int | None = Field(
        default=None, ge=1, le=10_000_000, description="What one node draws at work, in W. Default: not counted."
    )
    pods: PoolPodsConfig = Field(
        default_factory=PoolPodsConfig, description="What pods that work here get besides what a job asks for."
    )


class LeaderElectionConfig(ApiModel):
    """One active replica at a time, by a Lease."""

    enabled: bool = True
    namespace: Name = "slipway-system"
    name: Name = "slipway-operator"


class RayConfig(ApiModel):
    """What rendered Ray clusters run."""

    image: str = Field(
        default="slipway/jobs:0.1.0", min_length=1, max_length=512, description="Image of a run's head and workers."
    )
    serving_image: str = Field(
        default="slipway/serving:0.1.0",
        min_length=1,
        max_length=512,
        description="Image of a Deployment's head and workers.",
    )
    head_memory: Quantity = Field(default="2Gi", description="Memory of each head. It runs no model.")
    version: str = Field(default="2.60.0", pattern=r"^\d+\.\d+\.\d+$", description="Ray version inside the image.")


Cidr = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class NetworkPolicyConfig(ApiModel):
    """What the pods of a run may talk to, besides each other and DNS. All else is denied."""

    operator_namespace: Name = Field(description="Namespace of the operator's pods.")
    operator_labels: dict[str, str] = Field(min_length=1, description="Labels of the operator's pods.")
    reports_port: Port = Field(description="Port that the operator's pods take reports on.")
    ray_operator_namespace: Name = Field(description="Namespace of KubeRay, which submits to port 8265.")
    api_server_ports: Annotated[list[Port], Field(min_length=1, max_length=32)] = Field(
        default_factory=lambda: [443, 6443],
        description="Ports of the API server, as pods see it: Ray's autoscaler speaks to it.",
    )
    client_namespaces: Annotated[list[Name], Field(max_length=64)] = Field(
        default_factory=list,
        description="Namespaces whose pods may ask Deployments, besides each Deployment's own. Empty: whoever comes.",
    )
    egress_ports: Annotated[list[Port], Field(max_length=32)] = Field(
        default_factory=lambda: [443], description="Ports outside the cluster: object storage, model hubs."
    )
    egress_except: Annotated[list[Cidr], Field(max_length=32)] = Field(
        default_factory=lambda: ["169.254.0.0/16", "fd00:ec2::254/128"],
        description="Never, not even on those ports: cloud metadata services.",
    )


class OperatorConfig(ApiModel):
    """Everything that the operator is told at start-up."""

    storage: StorageConfig
    reports: ReportsConfig
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    pools: Annotated[list[PoolConfig], Field(max_length=256)] = Field(
        default_factory=list, description="Empty: the plan does not count nodes. The first that a job fits in is its."
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="Of the pools' prices (ISO 4217).")
    leader_election: LeaderElectionConfig = Field(default_factory=LeaderElectionConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    network_policy: NetworkPolicyConfig | None = Field(
        default=None, description="Make a NetworkPolicy for each job and Deployment. Default: none."
    )
    namespaces: Annotated[list[Name], Field(max_length=256)] = Field(
        default_factory=list, description="Watch these namespaces only. Empty: all."
    )
    workers: int = Field(default=4, ge=1, le=64, description="TrainJobs reconciled at the same time.")


def load(path: Path) -> OperatorConfig:
    """Read the file. Raises ConfigError naming the file and every wrong field."""
    try:
        document = yaml.safe_load(path.read_text())
        config = OperatorConfig.model_validate(document)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {wrong}") from error
    secure = config.reports.url.startswith("https://")
    if not secure and (config.reports.tls or config.reports.ca_file):
        raise ConfigError(f"{path}: reports.url: must begin with https:// when reports.tls or reports.caFile is set")
    if len(set(config.namespaces)) != len(config.namespaces):
        raise ConfigError(f"{path}: namespaces: a namespace is named twice")
    return config
