"""Without a network a hub id is answered by one line, at once."""

import socket
import time
from typing import Any

import pytest
from huggingface_hub import constants

from forkpoint.config.stages import DataTaskConfig, ModelConfig
from forkpoint.errors import DataError, ModelError
from forkpoint.policy.load import load_model
from forkpoint.tasks.data import DataTask


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The hub's libraries may use the network, and no name can be looked up."""
    asked: list[Any] = []

    def fail(host: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits to try again"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_a_model(lookups: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"'nobody/nothing' cannot be loaded: We couldn't connect"):
        load_model(ModelConfig(path="nobody/nothing"))
    assert len(lookups) == 1
    assert "Retry" not in "".join(capfd.readouterr())


def test_a_data_set(lookups: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"'nobody/nothing': the hub data set cannot be loaded: "):
        DataTask(DataTaskConfig(type="data", path="nobody/nothing"))
    assert len(lookups) <= 1
    assert "Retry" not in "".join(capfd.readouterr())


def test_a_folder_asks_for_no_network(lookups: list[Any]) -> None:
    load_model(ModelConfig(path="lab:game"))
    assert lookups == []
