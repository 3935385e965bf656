"""Training checkpoints: all that an exact continuation needs, published by one rename."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interkd.kernels.errors import CheckpointError
from interkd.pipeline.files import publish_folder, temporary_name, write_json

_CHECKPOINT = re.compile(r"(epoch|step)-\d+|average")
_LEFTOVER = re.compile(r"\..+?\.(?P<host>.+)\.(?P<pid>\d+)\.tmp(\.former)?")
STATE_FILE = "trainer.json"
TENSORS_FILE = "trainer.safetensors"


def save_trainer_state(
    folder: Path, optimiser: torch.optim.Optimizer, device: torch.device, state: dict[str, Any]
) -> None:
    """Writes optimiser, random generators and position into an existing folder."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    plain: dict[str, Any] = {}
    for index, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                plain[f"{index}.{name}"] = value
    save_file(tensors, folder / TENSORS_FILE)
    write_json(folder / STATE_FILE, {**state, "optimiser": plain})


def load_trainer_state(
    folder: Path, optimiser: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Restores optimiser and random generators in place and returns the position.

    Raises:
        CheckpointError: If the files are missing or damaged.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS_FILE)
        plain = state.pop("optimiser")
    except (OSError, KeyError, json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot resume from {folder}", got=error) from error
    entries: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *((f"optimiser.{k}", v) for k, v in plain.items())]:
        kind, _, rest = key.partition(".")
        if kind == "optimiser":
            index, _, name = rest.partition(".")
            entries.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(
        {"state": entries, "param_groups": optimiser.state_dict()["param_groups"]}
    )
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    return state


class CheckpointFolder:
    """The checkpoints of a run: `best.json` and `last.json` point at folders that stand whole."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.root = run / "checkpoints"

    def begin(self, name: str) -> Path:
        """A new temporary folder for a checkpoint of that name."""
        temporary = temporary_name(self.root / name)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def publish(self, temporary: Path, name: str) -> None:
        """Renames a finished checkpoint to its name."""
        publish_folder(temporary, self.root / name)

    def point(self, pointer: str, name: str, facts: dict[str, Any]) -> None:
        """Makes `best` or `last` mean the checkpoint of that name."""
        write_json(self.run / f"{pointer}.json", {"checkpoint": f"checkpoints/{name}", **facts})

    def pointed(self, pointer: str) -> str | None:
        """The name of the checkpoint that `best` or `last` means, or None."""
        path = self.run / f"{pointer}.json"
        if not path.exists():
            return None
        try:
            return Path(json.loads(path.read_text(encoding="utf-8"))["checkpoint"]).name
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is damaged", got=error) from error

    @property
    def is_empty(self) -> bool:
        """Whether no checkpoint stands there."""
        return not any(_CHECKPOINT.fullmatch(path.name) for path in self.root.glob("*"))

    def prune(self, keep: set[str]) -> None:
        """Removes the run's checkpoints that are not named, and this machine's dead leftovers."""
        for folder in self.root.iterdir():
            leftover = _LEFTOVER.fullmatch(folder.name)
            if leftover:
                mine = leftover["host"] == socket.gethostname()
                unwanted = mine and not _is_alive(int(leftover["pid"]))
            else:
                unwanted = folder.name not in keep and bool(_CHECKPOINT.fullmatch(folder.name))
            if unwanted:
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # what this process left, it left behind an exception
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
