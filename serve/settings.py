"""What the service is told when it starts."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


def _twice_the_slots(given: dict[str, Any]) -> int:
    """Calls that fill a replica's slots, and as many that wait for them."""
    return 2 * max(1, int(given["slots"]) // int(given["seeds_per_block"]))


class ServiceSettings(BaseModel):
    """Arguments of `serve.app:build`.

    `artifacts` holds uploads, results and, unless `database` is another SQLAlchemy URL, the SQLite
    file of the forecasts. `keys` is a file of hashed API keys (`serve.api.middleware`); `demo`
    needs none and answers this machine alone. `ingresses` replicas answer requests: with two, the
    loss of one costs none. Between `min_samplers` and `samplers` replicas draw, each on `cpus` or
    `gpus` and with `slots` samples in a batch; one handle call draws `block` seeds of an arm, and
    there are as many replicas as make `target` calls for each. `running` forecasts are drawn at a
    time, and beyond `unfinished` ones a request is refused with 429. A request may ask for
    `max_samples`, `max_steps` of the sampler and `max_guidance`. `opening` as in
    `ForecastSettings`. Patients' images are taken where `config` is the configuration that the
    store was converted with. Files of one request have at most `max_upload` bytes together; a
    patient's image has at most `max_file`, and `max_voxels` unpacked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path
    store: Path
    config: Path | None = None
    artifacts: Path = Path("out/serve")
    database: str = ""
    keys: Path | None = None
    demo: bool = False
    ingress_replicas: int = Field(default=1, ge=1)
    max_samplers: int = Field(default=1, ge=1)
    min_samplers: int = Field(default=1, ge=1)
    cpus_per_sampler: float = Field(default=1.0, ge=0)
    gpus_per_sampler: float = Field(default=0.0, ge=0)
    slots: int = Field(default=8, ge=1)
    seeds_per_block: int = Field(default=8, ge=1)
    target_ongoing_requests: int = Field(default_factory=_twice_the_slots, ge=1)
    max_concurrent_forecasts: int = Field(default=16, ge=1)
    max_unfinished_forecasts: int = Field(default=64, ge=1)
    max_samples: int = Field(default=256, ge=2)
    max_steps: int = Field(default=512, ge=1)
    max_guidance: float = Field(default=5.0, ge=0)
    max_body: int = Field(default=65_536, ge=1)
    max_file: int = Field(default=2**26, ge=1)
    max_upload: int = Field(default=2**28, ge=1)
    max_voxels: int = Field(default=2**28, ge=1)
    retry_after: int = Field(default=2, ge=1)
    apply_opening: bool = False

    @model_validator(mode="after")
    def _check_auth_mode(self) -> "ServiceSettings":
        if self.demo == (self.keys is not None):
            raise ValueError("expected either keys=FILE or demo=true, got both or neither")
        return self

    @model_validator(mode="after")
    def _check_sampler_bounds(self) -> "ServiceSettings":
        if self.min_samplers > self.max_samplers:
            raise ValueError(
                f"min_samplers: expected at most max_samplers, {self.max_samplers}, "
                f"got {self.min_samplers}"
            )
        return self

    @property
    def database_url(self) -> str:
        """Where forecasts are recorded."""
        return self.database or f"sqlite:///{self.artifacts.absolute() / 'forecasts.sqlite'}"

    def absolute(self) -> "ServiceSettings":
        """The same for a process with another working directory."""
        paths = {
            name: value.absolute()
            for name in ("bundle", "store", "config", "artifacts", "keys")
            if (value := getattr(self, name)) is not None
        }
        return self.model_copy(update={**paths, "database": self.database_url})
