"""Options of the region head."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tpo_core.contract import HeadConfig

Form = Literal["cxcywh_sigmoid", "xyxy_raw"]


class RegionConfig(HeadConfig):
    """The default learns fastest; ``loss: mse`` is the paper's; its released code is ``form: xyxy_raw, l1: 2, giou: 0.2``."""

    loss: Literal["l1_giou", "mse"] = Field(
        "l1_giou", description="l1_giou: mean |d| of the four numbers + (1 - GIoU); mse: mean d^2 (paper)"
    )
    l1: float = Field(5.0, ge=0, description="factor of the L1 term (of the mean over the four numbers)")
    giou: float = Field(2.0, ge=0, description="factor of the 1 - GIoU term")
    form: Form | None = Field(None, description="what the last layer gives; default: cxcywh_sigmoid, with mse xyxy_raw (as published)")
    hidden: int | None = Field(
        None, ge=1, description="width of the hidden layer; default: that of the language model (release: half of it)"
    )

    text_digits: int = Field(2, ge=1, le=4, description="digits of a coordinate where the language model writes boxes as text (tpo ablate)")

    @property
    def resolved_form(self) -> Form:
        """Return the form that the last layer's four numbers have."""
        if self.form is not None:
            return self.form
        return "cxcywh_sigmoid" if self.loss == "l1_giou" else "xyxy_raw"

    @property
    def factors(self) -> dict[str, float]:
        """Return the factor of each loss term."""
        return {"mse": 1.0} if self.loss == "mse" else {"l1": self.l1, "giou": self.giou}
