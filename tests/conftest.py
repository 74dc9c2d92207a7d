"""What every test shares: the published data, and a watch over Pyro's global parameter store."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib: tests open no window

import pyro
import pytest
import torch

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # which share the machine's cores
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Path of a published data file kept beside the checkout; where there is none, the test is skipped."""

    def find(name: str) -> Path:
        if not SHARED_DATA.is_dir():
            pytest.skip(f"{name}: the published data folder ../shared/data is absent")
        return SHARED_DATA / name

    return find


@pytest.fixture(autouse=True)
def param_store_untouched() -> Iterator[None]:
    """Fail a test that leaves the global parameter store other than it found it: every fit has a store of its own."""
    store = pyro.get_param_store()
    before = {name: value.detach().clone() for name, value in store.items()}
    yield
    after = {name: value.detach() for name, value in store.items()}
    store.clear()  # so that one leak fails one test
    changed = [
        name
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or not torch.equal(before[name], after[name])
    ]
    assert not changed, f"the test left changed params in Pyro's global store: {changed}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """What takes ten seconds a case is not for every day: SVI beside EM and CAVI but for the first example of every
    model, and scores of rows with gaps where only SVI, which fits their guide by gradient, knows them.
    """
    if item.path.name != "test_contract.py" or not item.name.startswith(("test_svi_reaches", "test_missing_cells_are")):
        return
    from latentzoo.models.registry import ENTRIES

    case = item.callspec.params
    card = ENTRIES[case["name"]].card
    others = item.name.startswith("test_svi_reaches") and case["example"] != ENTRIES[case["name"]].examples[0]
    if others or (card.inference == ("svi",) and card.family != "deep" and "scored" in item.name):
        item.add_marker("slow")
