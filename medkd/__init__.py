"""medkd distils large 3-D medical segmentation networks into small, fast ones.

One YAML file and ``medkd run FILE`` lead from a folder of CT or MRI volumes to a small student network and an honest
comparison with the same network trained without a teacher. From Python, :func:`load` gives a trained model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medkd.inference.model import SegmentationModel

__all__ = ["UserError", "__version__", "load"]

__version__ = "0.1.0"

from medkd.errors import UserError


def load(path: str | Path, **options: Any) -> SegmentationModel:
    """Return the trained model in the folder ``path``: a model folder, an exported one, or a whole run's.

    ``load(path).predict(image)`` labels a numpy array, a nibabel or a SimpleITK image. The options are those of
    :class:`~medkd.inference.model.SegmentationModel`: ``device``, ``overlap``, ``batch``, ``mirror``, ``skip_air``,
    ``memory_mb``; and ``threads``.

    Raises :class:`UserError` where the folder holds no model.
    """
    # Imported here because it brings torch, which `import medkd` must not wait for.
    from medkd.inference.model import SegmentationModel
    from medkd.pipeline.folder import find_model

    return SegmentationModel.from_folder(find_model(Path(path)), **options)
