"""Only samplers hold the networks: HTTP replicas and the forecast worker stay small."""

from pathlib import Path

import pytest

from lesioncast.bundle import bundle as bundle_module
from lesioncast.bundle.bundle import PRIOR, load_bundle
from lesioncast.bundle.description import describe_bundle
from lesioncast.bundle.io import Weights, read_tensors
from lesioncast.bundle.members import CONTROL_FILE, UNET_FILE
from lesioncast.errors import BundleError
from lesioncast.forecasting.runtime import build_sampler
from lesioncast.forecasting.sampling import EnsembleRequest, plan_batches
from serve.client import Client
from serve.model_info import mount_model
from serve.settings import ServiceSettings
from serve.worker.loaded_model import load_model
from storage import open_store
from tests.support.forecast import SPEC, write_bundle, write_store
from tests.support.service import run_service, wait_for_success


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    """Return settings of a service whose model has lesion loads, and so exact outcomes."""
    folder = tmp_path_factory.mktemp("weights")
    write_store(folder / "store.zarr", folder / "bids", test=2)
    write_bundle(folder / "bundle", lesion_loads=(1, 20))
    return ServiceSettings(
        bundle=folder / "bundle", store=folder / "store.zarr", artifacts=folder / "out", demo=True
    )


def test_only_the_sampler_reads_the_networks_and_exact_outcomes_stay_the_same(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []

    def recorded(file: Path, prefix: str = "") -> Weights:
        read.append((file.name, prefix))
        return read_tensors(file, prefix)

    monkeypatch.setattr(bundle_module, "read_tensors", recorded)
    with run_service(settings) as service, Client(service.url) as client:
        result = client.result(
            wait_for_success(client, client.create_forecast("sub-02", samples=2))
        )
    assert sorted(read) == [(CONTROL_FILE, ""), (CONTROL_FILE, PRIOR), (UNET_FILE, "")]
    draw = build_sampler(settings.bundle, settings.store, device="cpu")
    case = open_store(settings.store).case("sub-02").index
    (batch,) = plan_batches([EnsembleRequest(case, 0)], {case: (0,)}, batch_size=1)
    (expected,) = draw(batch).expected.values()
    found = [
        (arm["p_active"]["value"], arm["count"]["expected"]) for arm in result["arms"].values()
    ]
    assert found == [(each.p_active, each.lesions) for each in expected]
    assert len({p_active for p_active, _ in found}) == len(SPEC.arms)


def test_what_replicas_read_is_what_the_whole_bundle_says(settings: ServiceSettings) -> None:
    whole, mounted, loaded = (
        load_bundle(settings.bundle),
        mount_model(settings),
        load_model(settings),
    )
    for part in (mounted.bundle, loaded.bundle):
        assert (part.path, part.config, part.digest) == (whole.path, whole.config, whole.digest)


def test_every_replica_refuses_an_altered_file_that_it_reads(
    settings: ServiceSettings, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 20))
    changed = settings.model_copy(update={"bundle": tmp_path / "bundle"})
    for name, reads in ((CONTROL_FILE, (load_model,)), ("config.json", (load_model, mount_model))):
        file = tmp_path / "bundle" / name
        content = file.read_bytes()
        file.write_bytes(content[:-2] + b" \n")
        for read in reads:
            with pytest.raises(BundleError, match=f"{name}: expected the file that"):
                read(changed)
        file.write_bytes(content)
    assert describe_bundle(tmp_path / "bundle").digest
