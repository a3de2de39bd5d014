"""The tiny model and volumes of the inference tests."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

# Tests are no package (importmode=importlib), so the neighbour is loaded by its path.
_spec = spec_from_file_location("inference_fixtures", Path(__file__).parents[1] / "inference" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

make_model = _fixtures.make_model
write_image = _fixtures.write_image
