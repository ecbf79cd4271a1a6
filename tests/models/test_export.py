"""Exporting weights: torchvision's arguments beside the name. The command is tested in tests/cli/test_export.py."""

from __future__ import annotations

from distcxr.models.exported import export_weights
from distcxr.models.factory import build_model
from distcxr.recipe import Recipe


def test_a_network_that_is_built_for_one_size_is_built_for_it_again() -> None:
    recipe = Recipe.model_validate({"model": {"name": "maxvit_t", "weights": "none"}, "data": {"image_size": 448}})
    module = build_model("maxvit_t", library="torchvision", num_classes=2, image_size=448)
    state, about = export_weights(module, recipe, ["Edema", "Mass"], 448, plain=True)
    lines = "\n".join(about["load"])
    assert "get_model('maxvit_t', num_classes=2, input_size=(448, 448))" in lines
    assert state["classifier.5.bias"].shape == (2,) and "classifier[-1] = torch.nn.Linear(512, 2)" in lines
