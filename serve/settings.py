"""Settings of the service."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lesioncast.bundle.pretrained import PRETRAINED, pretrained_bundle
from lesioncast.errors import BundleError
from lesioncast.parsing import RemovedKeys, refuse_removed
from storage import Location, parse_location
from storage.backends.backend import is_url

REMOVED_SETTINGS = RemovedKeys(
    {
        "running": "max_concurrent_forecasts",
        "unfinished": "max_unfinished_forecasts",
        "samplers": "max_samplers",
        "cpus": "cpus_per_sampler",
        "gpus": "gpus_per_sampler",
        "block": "seeds_per_block",
        "target": "target_ongoing_requests",
        "ingresses": "ingress_replicas",
        "opening": "apply_opening",
        "config": None,
    },
    reasons={"config": "uploads are prepared with the settings that the store records"},
)
"""Keys of earlier versions, and the keys that replace them."""


def _refuse_url(value: Any) -> Any:
    """Return a value that names a local file; a path made of a URL would name a folder s3:."""
    if is_url(value):
        raise ValueError(f"expected a local path, got the URL {value}; mount it, or copy it here")
    return value


def _absolute_location(value: Any) -> Any:
    return parse_location(value) if isinstance(value, str) else value


def _bundle_folder(value: Any) -> Any:
    """Return the folder of a bundle; pydantic reports a ValueError beside the setting's name."""
    try:
        return pretrained_bundle() if value == PRETRAINED else _refuse_url(value)
    except BundleError as error:
        raise ValueError(str(error)) from error


LocalPath = Annotated[Path, BeforeValidator(_refuse_url)]


def _twice_the_slots(values: dict[str, Any]) -> int:
    """Return the number of calls that fill a replica's slots, plus as many that wait for them."""
    return 2 * max(1, int(values["slots"]) // int(values["seeds_per_block"]))


class ServiceSettings(BaseModel):
    """Arguments of `serve.app:build`, given as `key=value` to `serve run` or in service.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Annotated[Path, BeforeValidator(_bundle_folder)] = Field(
        description="Folder of the bundle with the networks, or `pretrained` for the bundle that "
        "comes with lesioncast."
    )
    store: Annotated[Location, BeforeValidator(_absolute_location)] = Field(
        description="Store of the subjects that can be forecast by name, a folder or a URL. "
        "Uploaded images are prepared with the settings that it records."
    )
    artifacts: LocalPath = Field(
        default=Path("out/serve"),
        description="Folder of uploads, results and, by default, the database.",
    )
    database: str = Field(
        default="",
        description="SQLAlchemy URL of the database; empty for a SQLite file in `artifacts`.",
    )
    keys: LocalPath | None = Field(
        default=None,
        description="File of hashed API keys (`python -m serve.keys create NAME`).",
    )
    audit_key: Path | None = Field(
        default=None,
        description="File of the keys that sign the audit; by default audit.key in `artifacts`, "
        "which the first start creates. Keep it where nobody can read it who can write to the "
        "database.",
    )
    keep_days: float = Field(
        default=90,
        ge=0,
        description="Days after its end that a forecast is kept: result, uploads and request. 0 "
        "keeps all until the client deletes it.",
    )
    keep_audit_days: float = Field(
        default=0,
        ge=0,
        description="Days that entries of the audit and ids of expired forecasts are kept; 0 keeps "
        "them for ever.",
    )
    demo: bool = Field(
        default=False,
        description="Demo mode: needs no key and answers only requests from this machine.",
    )
    truth: LocalPath | None = Field(
        default=None,
        description="Folder of the simulated trial, whose true counterfactual lesions the page "
        "shows. Only in demo mode.",
    )
    ingress_replicas: int = Field(
        default=1,
        ge=1,
        description="Number of HTTP replicas. With two or more, requests survive the loss of one.",
    )
    max_samplers: int = Field(default=1, ge=1, description="Largest number of sampler replicas.")
    min_samplers: int = Field(default=1, ge=1, description="Smallest number of sampler replicas.")
    cpus_per_sampler: float = Field(
        default=1.0, ge=0, description="CPUs that Ray reserves for each sampler replica."
    )
    gpus_per_sampler: float = Field(
        default=0.0, ge=0, description="GPUs of each sampler replica; above 0, it draws on a GPU."
    )
    slots: int = Field(
        default=8, ge=1, description="Samples in the running batch of a sampler replica."
    )
    seeds_per_block: int = Field(
        default=8, ge=1, description="Seeds of one arm that one call to a sampler draws."
    )
    target_ongoing_requests: int = Field(
        default_factory=_twice_the_slots,
        ge=1,
        description="Calls per sampler replica that autoscaling aims for. By default twice as many "
        "as fill the slots.",
    )
    max_concurrent_forecasts: int = Field(
        default=16, ge=1, description="Forecasts that are drawn at the same time."
    )
    max_unfinished_forecasts: int = Field(
        default=64,
        ge=1,
        description="Accepted forecasts that may be unfinished. Further requests are answered 429.",
    )
    max_samples: int = Field(default=256, ge=2, description="Largest `samples` of a request.")
    max_steps: int = Field(
        default=512, ge=1, description="Largest `sampler.num_steps` of a request."
    )
    max_guidance: float = Field(
        default=5.0, ge=0, description="Largest `sampler.guidance` of a request."
    )
    max_body: int = Field(default=65_536, ge=1, description="Largest JSON body, in bytes.")
    max_file: int = Field(default=2**26, ge=1, description="Largest uploaded file, in bytes.")
    max_upload: int = Field(
        default=2**28, ge=1, description="Largest multipart form with all its files, in bytes."
    )
    max_voxels: int = Field(
        default=2**28,
        ge=1,
        description="Largest unpacked image, in bytes of voxels, as its header states.",
    )
    give_up_after: int = Field(
        default=86_400,
        ge=0,
        description="Seconds after which a forecast fails that met nothing but outages of disks, "
        "database or samplers.",
    )
    retry_after: int = Field(
        default=2, ge=1, description="Value of the header Retry-After, in seconds."
    )
    apply_opening: bool = Field(
        default=False,
        description="Count lesions after a morphological opening, as `forecast.apply_opening`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_removed(cls, values: Any) -> Any:
        if isinstance(values, dict):
            refuse_removed(values, REMOVED_SETTINGS, source="settings of the service")
        return values

    @model_validator(mode="after")
    def _check_auth_mode(self) -> "ServiceSettings":
        if self.demo == (self.keys is not None):
            raise ValueError("expected either keys=FILE or demo=true, got both or neither")
        return self

    @model_validator(mode="after")
    def _check_truth_is_simulated(self) -> "ServiceSettings":
        if self.truth is not None and not self.demo:
            raise ValueError(
                "truth: expected it in demo mode alone, got it with keys=FILE; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_sampler_bounds(self) -> "ServiceSettings":
        if self.min_samplers > self.max_samplers:
            raise ValueError(
                f"min_samplers: expected at most max_samplers, {self.max_samplers}, "
                f"got {self.min_samplers}"
            )
        return self

    @model_validator(mode="after")
    def _check_retention(self) -> "ServiceSettings":
        if self.keep_audit_days and not 0 < self.keep_days <= self.keep_audit_days:
            raise ValueError(
                f"keep_audit_days: expected at least keep_days, which must be above 0, got "
                f"{self.keep_audit_days:g} with keep_days={self.keep_days:g}"
            )
        return self

    @property
    def audit_key_path(self) -> Path:
        """Return the file of the keys that sign the audit."""
        return self.audit_key or self.artifacts.absolute() / "audit.key"

    @property
    def database_url(self) -> str:
        """Return the SQLAlchemy URL of the database."""
        return self.database or f"sqlite:///{self.artifacts.absolute() / 'forecasts.sqlite'}"

    def absolute(self) -> "ServiceSettings":
        """Return a copy with absolute paths, for processes with another working directory."""
        paths = {
            name: value.absolute()
            for name in ("bundle", "store", "artifacts", "keys", "audit_key", "truth")
            if isinstance(value := getattr(self, name), Path)
        }
        return self.model_copy(update={**paths, "database": self.database_url})
