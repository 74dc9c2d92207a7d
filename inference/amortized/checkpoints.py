"""The state of an unfinished fit with networks on disk: enough to go on as if it had never stopped."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..base.run_folder import write_run
from ..data.schema import Dataset
from ..data.streams import Rows, spread_rows
from ..data.structures import tensors_of
from ..svi.checkpoints import Checkpoints, hashed

NUMBERS = ("rate", "step", "level", "waited", "length", "converged")  # of a state, beside its arrays


class DeepCheckpoints:
    """Writes a training's state to a folder, now and then, and reads it again."""

    def __init__(self, training: Any, dataset: Dataset, asked: Any, plan: Any) -> None:
        self.training = training
        identity: dict[str, Any] = {}
        if asked.checkpoint is not None:
            identity = self._identity(dataset, asked, plan)
        folder, steps, seconds = asked.checkpoint, asked.checkpoint_steps, asked.checkpoint_seconds
        self.files = Checkpoints(folder, steps, seconds, identity)

    def _identity(self, dataset: Dataset, asked: Any, plan: Any) -> dict[str, Any]:
        training = self.training
        leaves = {name: list(leaf.shape) for name, leaf in training.leaves.items()}
        given = dataset.values
        looked = {"rows": spread_rows(given)} if isinstance(given, Rows) else tensors_of(given)
        data = {name: [list(v.shape), str(v.dtype), hashed(v)] for name, v in looked.items()}
        if isinstance(given, Rows):
            data["rows"][0] = list(given.shape)
        options = {name: repr(value) for name, value in plan._asdict().items()}
        options["optimizer"] = type(training.optimizer).__name__
        options |= {"batch_size": training.batches.size, "validation": asked.validation}
        return {"model": leaves, "data": data, **options}

    @property
    def home(self) -> torch.device:
        """Where the weights are."""
        return next((leaf.device for leaf in self.training.leaves.values()), torch.device("cpu"))

    def maybe(self) -> None:
        """Write where it is time."""
        files, step = self.files, self.training.state.step
        if files.folder is None:
            return
        if step - files.last_step >= files.steps or time.monotonic() - files.last_time >= files.seconds:
            self.write()

    def write(self) -> None:
        """Write the state."""
        files, training = self.files, self.training
        if files.folder is None:
            return
        state, batches = training.state, training.batches
        arrays: dict[str, Tensor] = {f"leaf/{name}": leaf for name, leaf in training.leaves.items()}
        for name, leaf in training.leaves.items():
            own = training.optimizer.state.get(leaf, {})
            arrays |= {f"optimizer/{key}/{name}": torch.as_tensor(v) for key, v in own.items() if v is not None}
        for name, network in training.story.networks.items():
            arrays |= {f"buffer/{name}/{key}": value for key, value in network.named_buffers()}
        arrays |= {f"best/{name}": value for name, value in state.best.items()}
        arrays |= {"bounds": torch.tensor(state.bounds, dtype=torch.float64, device="cpu"), "order": batches.order}
        arrays |= {"random": torch.get_rng_state(), "random_batches": batches.generator.get_state()}
        if self.home.type == "cuda":
            arrays["random_device"] = torch.cuda.get_rng_state(self.home)
        record = {"kind": "checkpoint", "identity": files.identity, "position": batches.position}
        write_run(files.folder, arrays, {**record, **{name: getattr(state, name) for name in NUMBERS}})
        files.last_step, files.last_time = state.step, time.monotonic()

    def restore(self) -> None:
        """Put the training, and the random state, where the checkpoint was written; where there is one."""
        found = self.files.read()
        if found is None:
            return
        arrays, record = found
        training = self.training
        state, batches = training.state, training.batches
        for name in NUMBERS:
            setattr(state, name, record[name])
        state.bounds = arrays["bounds"].tolist()
        state.best = {name.removeprefix("best/"): v for name, v in arrays.items() if name.startswith("best/")}
        with torch.no_grad():
            for name, leaf in training.leaves.items():
                leaf.copy_(arrays[f"leaf/{name}"])
            for place, value in arrays.items():
                kind, _, rest = place.partition("/")
                key, _, name = rest.partition("/")
                if kind == "optimizer":
                    leaf = training.leaves[name]
                    training.optimizer.state[leaf][key] = value.to(leaf.device)
            for name, network in training.story.networks.items():
                for key, buffer in network.named_buffers():
                    buffer.copy_(arrays[f"buffer/{name}/{key}"])
        training.decay(state.rate)
        batches.order, batches.position = arrays["order"], record["position"]
        batches.generator.set_state(arrays["random_batches"])
        torch.set_rng_state(arrays["random"])
        if self.home.type == "cuda":
            torch.cuda.set_rng_state(arrays["random_device"], self.home)
        self.files.last_step = state.step
