"""A cluster that lesioncast starts lets in only processes that have its token."""

import os
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
import ray

from lesioncast.cluster.connection import RAY_DEFAULTS, prepare_token

TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.mark.ray
def test_stranger_without_the_token_is_refused_by_a_local_cluster(ray_cluster: None) -> None:
    def ask(*metadata: tuple[str, str]) -> Any:
        """Call Ray's control service as any program that reaches its port can do."""
        with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
            call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
            try:
                _, answered = call.with_call(b"", metadata=metadata, timeout=20)
            except grpc.RpcError as error:
                return error.code()
            return answered.code()

    assert ask() == grpc.StatusCode.UNAUTHENTICATED
    token = os.environ["RAY_AUTH_TOKEN"]
    assert ask(("authorization", f"Bearer {token[::-1]}")) == grpc.StatusCode.UNAUTHENTICATED
    assert ask(("authorization", f"Bearer {token}")) == grpc.StatusCode.OK


@pytest.mark.ray
def test_serves_controller_gives_the_proxy_our_time_to_start(ray_cluster: None) -> None:
    @ray.remote
    def seconds() -> float:
        from ray.serve._private.constants import PROXY_READY_CHECK_TIMEOUT_S

        return float(PROXY_READY_CHECK_TIMEOUT_S)

    stated = float(RAY_DEFAULTS["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"])
    assert ray.get(seconds.remote()) == stated


def test_token_is_new_unless_the_user_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def token(**given: str) -> str | None:
        with monkeypatch.context() as patch:
            for name in TOKENS:
                patch.delenv(name, raising=False)
            for name, value in ({"HOME": str(tmp_path)} | given).items():
                patch.setenv(name, value)
            prepare_token()
            return os.environ.pop("RAY_AUTH_TOKEN", None)

    first, second = token(), token(RAY_AUTH_MODE="token")
    assert first is not None
    assert len(first) == 64
    assert first != second
    assert token(RAY_AUTH_TOKEN="mine") == "mine"  # noqa: S106
    assert token(RAY_AUTH_TOKEN_PATH="/somewhere") is None
    assert caplog.text == ""
    assert token(RAY_AUTH_MODE="disabled") is None
    assert "whoever reaches Ray's ports on this machine can run code" in caplog.text
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the user's own clusters")
    assert token() is None
