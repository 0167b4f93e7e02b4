"""A network that nobody trained: what is bright around a voxel is bone. Saved as a run, it is ready to use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import nibabel
import numpy as np
import SimpleITK as sitk
import tiny

from femur_tf import bundle, config, files, model

RULE = config.PatchConfig(size=16, spacing_mm=tiny.SPACING_MM, scales_mm=(0.0, 3.6))
SETTINGS = config.RunConfig(dataclasses.replace(tiny.DATA, patch=RULE), config.ModelConfig(filters=(2, 2), dense=(2,)))
RECIPE = config.RecipeConfig(0.5, (config.Step("largest", 1),))
CHOSEN = bundle.ChosenRecipe(RECIPE, "dice", ("hip_03",), auc=0.9, raw_dice=0.8, dice=0.85)
GREY = 0.62
"""Brightness around it, in [0, 1], above which a voxel is bone."""
SLOPE = 40.0


def network(settings: config.RunConfig = SETTINGS) -> keras.Sequential:
    """Return the network: means all the way, of the map's cell just behind the centre, then a steep sigmoid."""
    result = model.build(settings.model, settings.data.patch)
    for layer in result.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([np.full_like(kernel, 1 / np.prod(kernel.shape[:-1])), np.zeros_like(bias)])
    *_, first, last = (layer for layer in result.layers if isinstance(layer, keras.layers.Dense))
    kernel, bias = first.get_weights()
    towers = settings.data.patch.channels
    cells = np.zeros((2, 2, towers, len(kernel) // (4 * towers), kernel.shape[1]), np.float32)
    cells[1, 1, : len(config.PLANES)] = 1 / (len(config.PLANES) * cells.shape[3])
    first.set_weights([cells.reshape(kernel.shape), bias])
    kernel, _ = last.get_weights()
    last.set_weights([np.full_like(kernel, SLOPE / len(kernel)), np.array([-SLOPE * GREY], np.float32)])
    return result


def save_run(
    folder: Path, *, chosen: bundle.ChosenRecipe | None = CHOSEN, settings: config.RunConfig = SETTINGS
) -> Path:
    """Write a run folder with the network, its settings and, unless None, a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    network(settings).save(folder / bundle.MODEL)
    files.write_json(folder / bundle.CONFIG, config.to_dict(settings))
    if chosen:
        files.write_json(folder / bundle.RECIPE, config.to_dict(chosen))
    return folder


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI file; by default with the spacing of the tiny study, axes running right, anterior, superior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([*tiny.SPACING_MM, 1.0]) if affine is None else affine), path)
    return path


def save_dicom(folder: Path, data: np.ndarray) -> Path:
    """Write an axial DICOM series of int16 (X, Y, Z), axes running left, posterior, superior."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(data.shape[2]):
        plane = sitk.GetImageFromArray(data[:, :, k].T)
        plane.SetSpacing(tiny.SPACING_MM[:2])
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{k}",
            "0020|0013": str(k),
            "0018|0050": str(tiny.SPACING_MM[2]),
            "0020|0032": f"0\\0\\{k * tiny.SPACING_MM[2]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(plane)
    return folder
