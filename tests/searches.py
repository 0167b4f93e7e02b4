"""Searches for tests: settings, a space, trials on disk that nothing trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from femur_tf import config, files
from tuning import trials
from tuning.search_space import Space
from tuning.trials import About, Search

DATA = tiny.DATA
SEARCH = Search(
    algorithm="bayesian",
    objective="val_auc",
    direction="max",
    seed=7,
    max_cost=250_000,
    trials=6,
    minutes=None,
    epochs=2,
    work="work",
    started="2026-11-23T00:00:00+00:00",
)
ANSWER = 0.3
"""Where the best score of `score` is, along each parameter."""


def space(max_cost: float = 250_000) -> Space:
    """Return the space over the tiny records."""
    return Space(DATA, max_cost)


def score(values: dict[str, Any], over: Space) -> float:
    """Return a score that a point would have: 1 at best."""
    places = [p.place(values[p.name]) for p in over.parameters]
    return float(1 - np.mean((np.array(places) - ANSWER) ** 2))


def write_search(folder: Path, **changes: Any) -> Search:
    """Write `search.json`."""
    search = dataclasses.replace(SEARCH, **changes)
    files.write_json(trials.search_path(folder), config.to_dict(search))
    return search


def write_trial(folder: Path, number: int, status: str, found: float | None, **changes: Any) -> Path:
    """Write the two files of a trial, and a run folder with a model and a checkpoint."""
    over = space()
    point = over.draw(np.random.default_rng(number))
    settings = over.settings({**point, "planes_0mm": "all"})
    about = About(number, over.active(point), config.to_dict(settings), 1000.0 + number, status, found)
    path = trials.trial_folder(folder, str(number))
    trials.write_about(path, dataclasses.replace(about, **changes))
    state = {"hyperparameters": {"space": [], "values": point}, "status": status, "score": found, "message": None}
    files.write_json(path / trials.TRIAL, state)
    run = path / trials.RUN
    files.write_json(run / "config.json", config.to_dict(settings))
    for name in ("model.keras", "checkpoint/epoch-0001/model.keras", "history.csv"):
        files.write_text(run / name, "x" * 1000)
    return path


def truncate(path: Path) -> None:
    """Cut a file in half, as a full disk or a lost page may."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
