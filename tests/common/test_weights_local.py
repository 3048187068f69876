"""On a shared disk versions appear whole, are read where they lie, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tba_common.weights import WeightsError, WeightStore
from tests.common.stored_versions import publish


def test_a_version_is_read_where_it_lies(tmp_path: Path) -> None:
    store = WeightStore(str(tmp_path / "weights"), tmp_path / "cache")
    publish(store, 1)
    assert store.find(1).directory == tmp_path / "weights/v000001"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_url_and_a_path_name_the_same_directory(tmp_path: Path) -> None:
    root = tmp_path / "weights of 100%"
    publish(WeightStore(str(root)), 1)
    assert WeightStore(root.as_uri()).versions() == [1]


def test_collecting_clears_what_a_killed_publisher_left_half_written(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    publish(store, 1)
    (tmp_path / "v000002.4242.tmp").mkdir()
    store.collect(keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["v000001"]


@pytest.mark.parametrize("name", ["adapter_config.json", "deeper/model.safetensors"])
def test_a_file_that_nobody_published_is_refused(tmp_path: Path, name: str) -> None:
    store = WeightStore(tmp_path)
    publish(store, 1)
    added = tmp_path / "v000001" / name
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(b"{}")
    with pytest.raises(WeightsError, match=rf"expected no file but those of the manifest, got \['{name}'\]"):
        store.find(1)
