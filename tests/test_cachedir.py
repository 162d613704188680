"""The private cache folder: code is loaded from it, so it must be the user's own."""

from __future__ import annotations

import os

import pytest

from mlxfn import cachedir


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Point the cache at an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_it_is_made_for_the_owner_alone(home):
    """Whatever the umask says."""
    old = os.umask(0)
    try:
        folder = cachedir.private_cache("x")
    finally:
        os.umask(old)
    assert folder == home / "mlxfn" / "x"
    assert [p.stat().st_mode & 0o777 for p in (folder, folder.parent)] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_could_write_is_not_used(home, mode):
    """Somebody may have planted a library in it already, so tightening it now is too late."""
    (home / "mlxfn").mkdir()
    (home / "mlxfn").chmod(mode)
    folder = cachedir.private_cache("x")
    assert home not in folder.parents
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_could_only_read_is_tightened(home):
    """Nothing can have been planted, so the warm cache stays in use."""
    (home / "mlxfn").mkdir(mode=0o755)
    assert cachedir.private_cache("x").parent == home / "mlxfn"
    assert (home / "mlxfn").stat().st_mode & 0o777 == 0o700


def test_a_symbolic_link_is_not_followed(home, tmp_path_factory):
    """A link in a shared cache folder could point into somebody else's."""
    (home / "mlxfn").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    assert home not in cachedir.private_cache("x").parents


def test_a_home_that_cannot_be_written_costs_only_warmth(home, monkeypatch):
    """Containers often have no usable home: a run must start all the same."""
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert cachedir.private_cache("x").is_dir()
