"""`Section`, the base of every part of a recipe: frozen, refuses unknown keys; and the types of its values."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Duration = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(ep|st|%)$", examples=["10ep", "500st", "5%"])]
"""`10ep` epochs, `500st` steps (optimiser updates) or `5%` of the whole schedule."""

DURATION_KEYS = ("every", "warmup")

FUNCTION_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
FunctionName = Annotated[str, Field(pattern=FUNCTION_PATTERN, examples=["mine:function"])]
"""`module:function`, a user's own: docs/own_parts.md."""

FUNCTION_KEYS = ("function", "reader")
NOT_A_FUNCTION = "is not module:function: write mine:loss for the function `loss` of mine.py in the working directory"

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number is meant: Python would take it for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"{info.field_name} can't be {str(value).lower()}: see its meaning in recipe.schema.json")
        return value
