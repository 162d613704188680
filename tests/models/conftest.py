"""Model folders that several tests read; nobody writes into them."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support import models


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return a function from a kind of model to a folder with one."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def folder(kind, **changes):
        name = "-".join([kind, *(f"{key}={value}" for key, value in changes.items())])
        return models.write_model(root / name, kind, **changes)

    return folder


@pytest.fixture(scope="session")
def model_of(folder_of):
    """Return a function from a kind of model (and load options) to a loaded one."""

    @cache
    def model(kind, **options):
        return models.load(folder_of(kind), **options)

    return model


@pytest.fixture(scope="session")
def llama(model_of):
    """The smallest Llama."""
    return model_of("llama")


@pytest.fixture(scope="session")
def qwen3(model_of):
    """The smallest Qwen3, whose head is its embedding."""
    return model_of("qwen3")
