"""nnU-Net v2 as a teacher, through nnU-Net's own code: its reader, preprocessing, windows and resampling back."""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn

from medkd.data.dataset import Case
from medkd.data.plan import Plan
from medkd.errors import UserError
from medkd.networks.weights import file_hash
from medkd.teachers.adapters.nnunet_files import Results, read_results, turns_volumes
from medkd.teachers.adapters.planned import digest, read_case
from medkd.teachers.grids import onto_grid, prepared_affine
from medkd.teachers.sources import TRUST, Float, Teacher, TeacherCard

NOT_LIVE = (
    "nnU-Net reads volumes as they are stored, with a preprocessing of its own, so its answers are stored instead"
)


class NnunetTeacher:
    """One fold of a trained nnU-Net.

    Args:
        card: labels, who was in the fold.
        results: the folder.
        predictor: an ``nnUNetPredictor`` with the fold's weights.
    """

    def __init__(self, card: TeacherCard, results: Results, predictor: Any) -> None:
        self.card, self.why_not_live = card, NOT_LIVE
        self._results, self._predictor = results, predictor
        self._turns = turns_volumes(results.plans)

    def answer(self, case: Case, prepared: Float, plan: Plan) -> Float:
        """Return what nnU-Net predicts for the image files of a case, on the grid of ``prepared``."""
        volume = read_case(self.card, case)
        found = self.predict(case)
        grid = volume.geometry
        shape, affine = (grid.canonical_shape, grid.canonical_affine) if self._turns else (grid.shape, grid.affine)
        if found.shape[1:] != tuple(shape):
            raise UserError(
                f"nnU-Net read case {case.id} as {found.shape[1:]} voxels and medkd as {tuple(shape)}; "
                "store the volume as 3-D NIfTI"
            )
        target = prepared_affine(volume.affine, volume.shape, prepared.shape[1:])
        return onto_grid(found, affine, target, prepared.shape[1:])

    def predict(self, case: Case) -> Float:
        """Return nnU-Net's probabilities ``(K, x, y, z)`` on the grid of the file, as it stores them."""
        with quiet():
            image, properties = self._predictor.plans_manager.image_reader_writer_class().read_images(
                [str(path) for path in case.images]
            )
            _, found = self._predictor.predict_single_npy_array(image, properties, None, None, True)
        return np.asarray(found, np.float32).transpose(0, 3, 2, 1)

    def network(self, plan: Plan | None = None) -> nn.Module | None:
        """Return None: nnU-Net's network cannot read the student's patches."""
        return None


def open_results(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    mirror: bool = False,
    trust_pickle: bool = False,
    folds: Sequence[int | str] | None = None,
) -> list[Teacher]:
    """Open the folds of a results folder, one teacher each.

    Args:
        folder: with ``plans.json``, ``dataset.json`` and ``fold_*``.
        device: where networks run.
        mirror: average over the flips that training used, as ``nnUNetv2_predict`` does unless told ``--disable_tta``.
        trust_pickle: unpickle checkpoints that hold more than weights and plain data.
        folds: which; None for all that are there.

    Raises:
        UserError: nnunetv2 is missing, the folder is incomplete, or a checkpoint is damaged or may run code.
    """
    results = read_results(folder, folds)
    _require()
    return [_open_fold(results, fold, torch.device(device), mirror, trust_pickle) for fold in results.folds]


def _require() -> None:
    try:
        import nnunetv2  # noqa: F401
    except ImportError as error:
        raise UserError("an nnU-Net teacher needs nnunetv2; install it with `pip install 'medkd[nnunet]'`") from error


def _open_fold(results: Results, fold: str, device: torch.device, mirror: bool, trust: bool) -> Teacher:
    path = results.folds[fold]
    checkpoint = read_checkpoint(path, trust)
    with quiet():
        predictor = _predictor(results, checkpoint, path, device, mirror)
    plans = {key: results.plans[key] for key in ("image_reader_writer", "transpose_forward") if key in results.plans}
    dataset = results.folder.parent.name
    card = TeacherCard(
        name=f"{dataset}.{results.configuration}.fold_{fold}",
        kind="nnunet",
        labels=results.labels,
        in_channels=len(results.channels),
        trained_on=results.trained_on(fold),
        licence=results.dataset.get("licence") or results.dataset.get("license"),
        identity=digest(file_hash(path), plans, results.plans["configurations"][results.configuration], results.labels),
        provenance={
            "folder": results.folder.name,
            "checkpoint": f"{path.parent.name}/{path.name}",
            "trainer": str(checkpoint["trainer_name"]),
            "nnunetv2": _version(),
        },
    )
    return NnunetTeacher(card, results, predictor)


def read_checkpoint(path: Path, trust_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net: weights and plain data alone, unless trusted.

    Raises:
        UserError: damaged, of another format, or a pickle that asks for more than plain data.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged or cut short; copy it again from where it was trained")
    try:
        with torch.serialization.safe_globals(_plain_numpy()):
            body = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "")
        raise UserError(
            f"{path} is a pickle with more than weights in it{f' ({reason[:120]})' if reason else ''}, which may run "
            f"code; if you know where it comes from, set `{TRUST}`"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or cut short; copy it again from where it was trained") from error
    missing = [key for key in ("network_weights", "trainer_name", "init_args") if key not in body]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is no checkpoint of an nnU-Net v2 that medkd knows")
    return dict(body)


def _plain_numpy() -> list[Any]:
    """Return what the numbers in nnU-Net's log need: scalars of numpy, nothing that acts."""
    import numpy._core.multiarray as multiarray

    kinds: list[Any] = [type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")]
    scalar: Any = multiarray.scalar
    return [np.dtype, scalar, (scalar, "numpy.core.multiarray.scalar"), *kinds]


def _predictor(results: Results, checkpoint: dict[str, Any], path: Path, device: torch.device, mirror: bool) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    predictor: Any = nnUNetPredictor(
        use_mirroring=mirror, perform_everything_on_device=device.type == "cuda", device=device, allow_tqdm=False
    )
    manager: Any = PlansManager(results.plans)
    configuration = manager.get_configuration(results.configuration)
    heads = manager.get_label_manager(results.dataset).num_segmentation_heads
    if heads != len(results.labels):
        raise UserError(f"{path} answers {heads} classes and dataset.json names {len(results.labels)}")
    network = _network(checkpoint, manager, configuration, len(results.channels), heads, path)
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise UserError(f"{path} does not fit the network of plans.json: {reason}") from error
    predictor.manual_initialization(
        network,
        manager,
        configuration,
        [checkpoint["network_weights"]],
        results.dataset,
        checkpoint["trainer_name"],
        checkpoint.get("inference_allowed_mirroring_axes"),
    )
    return predictor


def _network(
    checkpoint: dict[str, Any], manager: Any, configuration: Any, channels: int, heads: int, path: Path
) -> nn.Module:
    """Return the network as the trainer of the checkpoint builds it: a trainer may have one of its own."""
    trainer = _trainer(str(checkpoint["trainer_name"]), path)
    build = trainer.build_network_architecture
    if "plans_manager" in inspect.signature(build).parameters:
        network: nn.Module = build(manager, configuration, channels, heads, enable_deep_supervision=False)
    else:  # trainers written for nnunetv2 before 2.8
        network = build(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            channels,
            heads,
            enable_deep_supervision=False,
        )
    return network


def _trainer(name: str, path: Path) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    if name == "nnUNetTrainer":
        return nnUNetTrainer
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(name)
    except Exception as error:  # the search imports every trainer there is, and each may fail in its own way
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} was trained by {name}, which nnunetv2 here cannot load ({reason}); "
            "set nnUNet_extTrainer to the folder of that class"
        ) from error


def _version() -> str:
    from importlib import metadata

    return metadata.version("nnunetv2")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep nnU-Net's messages off the terminal; what is wrong is raised."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
