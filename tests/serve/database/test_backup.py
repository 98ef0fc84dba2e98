"""The backup and the restore of the operator's guide, line by line, on SQLite."""

import shutil
from pathlib import Path

import pytest

from serve.artifacts import upload_dir
from serve.client import ApiError, Client
from serve.db import audit
from serve.keys import SCOPES
from tests.serve.database.guide import guide_commands, run_commands
from tests.support.bids import path_of
from tests.support.service import (
    key_line,
    run_service,
    trial_settings,
    wait_for_success,
    wait_until,
    write_trial_served,
)

SUBJECT = "sub-03"


def test_restored_service_keeps_results_keys_and_audit_and_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trial_served(tmp_path, unlabelled=SUBJECT)
    keys = tmp_path / "keys.txt"
    keys.write_text(key_line("hospital", "secret", scopes=SCOPES))
    settings = trial_settings(tmp_path, tmp_path / "out", demo=False, keys=keys)
    images = {
        name: path_of(tmp_path / "bids", SUBJECT, *name.split("/"))
        for name in ("w000/flair", "w048/flair")
    }
    places = {
        "ARTIFACTS": settings.artifacts,
        "BACKUP": tmp_path / "backup",
        "KEYS": keys,
        "AUDIT_KEY": settings.audit_key_path,
    }
    with run_service(settings) as service, Client(service.url, key="secret") as client:
        done = wait_for_success(client, client.create_forecast(images=images, samples=4))
        whole = client.result(done)
        service.budget = 2
        unfinished = client.create_forecast(images=images, samples=4)
        wait_until(lambda: client.status(unfinished)["progress"]["done"] == 4)
        run_commands(guide_commands("Backup", without="pg_dump"), places)
        lost = client.create_forecast("sub-01", samples=2)
    shutil.rmtree(settings.artifacts)
    keys.unlink()
    run_commands(guide_commands("Restore", without="pg_restore"), places)
    with run_service(settings) as service, Client(service.url, key="secret") as client:
        assert client.result(done) == whole
        assert client.result(wait_for_success(client, unfinished)) == whole
        assert len(service.drawn) == 4  # of six blocks, two were in the backup
        with pytest.raises(ApiError, match="404 Not Found"):
            client.status(lost)
        client.delete(done)
        assert not upload_dir(settings.artifacts, done).exists()
    command = [settings.database_url, "--key", str(settings.audit_key_path)]
    assert audit.main(command) == 0
    assert capsys.readouterr().out.startswith("5 entries, as they were written")
