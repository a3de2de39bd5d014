"""The bundle runs with MONAI alone, and answers as medkd does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from scipy import ndimage

from medkd.data.plan import IntensityRule, Plan
from medkd.data.preprocess import prepare_image
from medkd.data.volume import read_label, read_volume
from medkd.errors import UserError
from medkd.export.bundle import export_bundle
from medkd.inference.model import SegmentationModel
from medkd.networks.weights import load_network

Make = Callable[..., Path]
ZSCORE = IntensityRule("zscore")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels=:FutureWarning"),  # MONAI announces a default that is not used here
    pytest.mark.filterwarnings("ignore:align_corners=False is not compatible:UserWarning"),  # see bundle_config
]


def smooth(path: Path, shape: tuple[int, ...], seed: int = 0, spacing: float = 3.0) -> Path:
    """Write a volume without noise, stored LPS, far from the origin as scanners have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 2)
    affine = np.diag([-1.0, -1.0, spacing, 1.0])
    affine[:3, 3] = (40, 60, -200)
    nibabel.save(nibabel.Nifti1Image((50 + 100 * voxels / voxels.std()).astype(np.float32), affine), path)
    return path


def workflow(bundle: Path, images: Path, out: Path, **more: Any) -> ConfigWorkflow:
    return ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(bundle),
        dataset_dir=str(images),
        output_dir=str(out),
        **more,
    )


def test_runs_and_agrees(make_model: Make, tmp_path: Path) -> None:
    folder = make_model(spacing_mm=(2.0, 2.0, 3.0))
    bundle = export_bundle(folder, tmp_path / "bundle")
    image = smooth(tmp_path / "in" / "a.nii.gz", (24, 20, 9))
    run = workflow(bundle, image.parent, tmp_path / "out")
    run.initialize()
    run.run()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_seg.nii.gz"]
    volume = read_volume(image)
    theirs = read_label(tmp_path / "out" / "a_seg.nii.gz", like=volume)
    model = SegmentationModel.from_folder(folder)
    ours = model.predict(volume)
    assert len(np.unique(ours)) > 1
    assert (theirs == ours).mean() > 0.99


def test_prepared_image_is_that_of_the_plan(make_model: Make, tmp_path: Path) -> None:
    folder = make_model(spacing_mm=(2.0, 2.0, 3.0))
    image = smooth(tmp_path / "in" / "a.nii.gz", (24, 20, 9))
    run = workflow(export_bundle(folder, tmp_path / "bundle"), image.parent, tmp_path / "out")
    run.initialize()
    theirs = np.asarray(run.parser.get_parsed_content("dataset")[0]["image"])
    ours, _ = prepare_image(read_volume(image), SegmentationModel.from_folder(folder).plan)
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("empty", [0.0, 0.5], ids=["whole", "cut out"])
def test_channels_with_rules_of_their_own(make_model: Make, tmp_path: Path, empty: float) -> None:
    rules = (IntensityRule("ct", -100.0, 200.0, 50.0, 80.0), ZSCORE)
    folder = make_model(channels=2, intensity=rules, spacing_mm=(1.0, 1.0, 3.0))
    files = [smooth(tmp_path / "in" / f"a_000{i}.nii.gz", (16, 12, 8), seed=i) for i in range(2)]
    if empty:
        stored = nibabel.load(files[1])
        voxels = np.asarray(stored.dataobj).copy()
        voxels[: int(empty * 16)] = 0
        nibabel.save(nibabel.Nifti1Image(voxels, stored.affine), files[1])
    run = workflow(export_bundle(folder, tmp_path / "bundle"), tmp_path / "in", tmp_path / "out")
    run.initialize()
    theirs = np.asarray(run.parser.get_parsed_content("dataset")[0]["image"])
    ours, _ = prepare_image(read_volume(files), SegmentationModel.from_folder(folder).plan)
    assert theirs.shape == ours.shape == (2, 16, 12, 8)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    run.run()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_0000_seg.nii.gz"]


def test_weights_are_a_plain_state_dict(make_model: Make, tmp_path: Path) -> None:
    folder = make_model()
    bundle = export_bundle(folder, tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    trained, _ = load_network(folder)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(image), trained(image))
    assert type(network).__module__.startswith("monai.")


def test_metadata_names_classes_and_origin(make_model: Make, tmp_path: Path) -> None:
    bundle = export_bundle(make_model(), tmp_path / "bundle")
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "left",
        "2": "right",
    }
    assert meta["network_data_format"]["inputs"]["image"]["num_channels"] == 1
    assert Plan.from_json(meta["medkd"]["plan"]).patch == (8, 8, 8)
    assert "| 2 | right |" in (bundle / "docs" / "README.md").read_text()
    assert "not recorded" in (bundle / "LICENSE").read_text()


def test_config_names_nothing_of_medkd(make_model: Make, tmp_path: Path) -> None:
    bundle = export_bundle(make_model(), tmp_path / "bundle")
    assert "medkd" not in (bundle / "configs" / "inference.json").read_text()


PROGRAM = """
import sys
sys.modules["medkd"] = None  # importing it fails
from monai.bundle import ConfigWorkflow
bundle, images, out, run_id = sys.argv[1:]
run = ConfigWorkflow(bundle + "/configs/inference.json", workflow_type="inference", logging_file=False, run_id=run_id,
                     bundle_root=bundle, dataset_dir=images, output_dir=out)
run.initialize()
if run_id == "evaluate":
    assert run.check_properties() == []
run.run()
"""


@pytest.mark.parametrize("run_id", ["run", "evaluate"])
def test_without_medkd_installed(make_model: Make, tmp_path: Path, run_id: str) -> None:
    """Run the bundle in a process of its own; ``evaluate`` needs ignite, which medkd does not."""
    if run_id == "evaluate" and find_spec("ignite") is None:
        pytest.skip("pytorch-ignite is not installed")
    folder = make_model(spacing_mm=(1.0, 1.0, 3.0))
    bundle = export_bundle(folder, tmp_path / "bundle")
    image = smooth(tmp_path / "in" / "a.nii.gz", (8, 12, 8))
    arguments = [str(bundle), str(image.parent), str(tmp_path / "out"), run_id]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = SegmentationModel.from_folder(folder)
    assert np.array_equal(read_label(tmp_path / "out" / "a_seg.nii.gz"), model.predict(read_volume(image)))


def test_old_bundle_is_replaced_and_nothing_else(make_model: Make, tmp_path: Path) -> None:
    bundle = export_bundle(make_model(), tmp_path / "bundle")
    before = (bundle / "models" / "model.pt").read_bytes()
    export_bundle(make_model("other", seed=3), bundle, version="0.2.0")
    assert (bundle / "models" / "model.pt").read_bytes() != before
    assert json.loads((bundle / "configs" / "metadata.json").read_text())["version"] == "0.2.0"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match="something else"):
        export_bundle(make_model(), tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


FIELD = {
    "type": "object",
    "required": [
        "type",
        "format",
        "num_channels",
        "spatial_shape",
        "dtype",
        "value_range",
        "is_patch_data",
        "channel_def",
    ],
    "properties": {
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
SCHEMA = {  # what MONAI's bundle specification asks for; the schema that the metadata names is on the net
    "type": "object",
    "required": [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object", "minProperties": 1},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                "inputs": {"type": "object", "additionalProperties": FIELD},
                "outputs": {"type": "object", "additionalProperties": FIELD},
            },
        },
    },
}


def monai_bundle(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run MONAI's own command line, which is written with fire."""
    if find_spec("fire") is None:
        pytest.skip("fire is not installed, which python -m monai.bundle needs")
    command = [sys.executable, "-m", "monai.bundle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.mark.slow
def test_monai_runs_it(make_model: Make, tmp_path: Path) -> None:
    """The command of the bundle's own README, in its folder."""
    folder = make_model(spacing_mm=(1.0, 1.0, 3.0))
    bundle = export_bundle(folder, tmp_path / "bundle")
    image = smooth(tmp_path / "in" / "a.nii.gz", (8, 12, 8))
    config = ("--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json")
    where = ("--dataset_dir", image.parent, "--output_dir", tmp_path / "out")
    done = monai_bundle("run", *config, *where, cwd=bundle)
    assert done.returncode == 0, done.stderr
    model = SegmentationModel.from_folder(folder)
    assert np.array_equal(read_label(tmp_path / "out" / "a_seg.nii.gz"), model.predict(read_volume(image)))


@pytest.mark.slow
def test_monai_verifies_the_network(make_model: Make, tmp_path: Path) -> None:
    bundle = export_bundle(make_model(channels=2), tmp_path / "bundle")
    files = ("--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")
    done = monai_bundle("verify_net_in_out", "network_def", *files, cwd=bundle)
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout + done.stderr
    wrong = monai_bundle(
        "verify_net_in_out",
        "network_def",
        *files,
        "--_meta_#network_data_format#outputs#pred#num_channels",
        7,
        cwd=bundle,
    )
    assert wrong.returncode != 0


@pytest.mark.slow
def test_monai_verifies_the_metadata(make_model: Make, tmp_path: Path) -> None:
    """Against a schema on this machine; MONAI takes the file that is there instead of fetching it."""
    if find_spec("jsonschema") is None:
        pytest.skip("jsonschema is not installed, which verify_metadata needs")
    bundle = export_bundle(make_model(), tmp_path / "bundle")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    given = ("--meta_file", "configs/metadata.json", "--filepath", tmp_path / "schema.json")
    done = monai_bundle("verify_metadata", *given, cwd=bundle)
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout + done.stderr
    meta = bundle / "configs" / "metadata.json"
    meta.write_text(json.dumps({key: value for key, value in json.loads(meta.read_text()).items() if key != "task"}))
    assert monai_bundle("verify_metadata", *given, cwd=bundle).returncode != 0
