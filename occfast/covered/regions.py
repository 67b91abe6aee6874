"""The regions of an aligned face whose coverage is estimated."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Template
from ..occlude.drawn import BANDS

_EYE_ROW, _MOUTH_ROW, _MIDDLE = 24.0, 46.0, 32.0
#: Alignment of the faces whose coverage is estimated: 64×64 pixels from the hair to below the chin. The proportions
#: are those of SphereFace's template, at 22 rows from the eyes to the mouth.
TEMPLATE = Template(
    "covered-64",
    (64, 64),
    ((_EYE_ROW, 22.5), (_EYE_ROW, 41.5), (34.9, _MIDDLE), (_MOUTH_ROW, 24.1), (_MOUTH_ROW, 39.9)),
)
#: The regions, from the top. They share no pixel, and together they are the face.
REGIONS = ("forehead", "left eye", "right eye", "left cheek", "nose", "right cheek", "mouth", "chin")
#: Half axes and center row of the ellipse that is the face, in rows and columns of the template: from the hairline, two
#: thirds of the way from the eyes to the mouth above the eyes, to the chin as far below the mouth.
_ELLIPSE = (26.0, 19.5, 35.0)
_NOSE = 5.5  # half width of the nose, in columns


def region_masks() -> Tensor:
    """Return the pixels of each region in an aligned face, bool [len(REGIONS), 64, 64].

    The rows are those of :data:`~occfast.occlude.drawn.BANDS`. The band of the eyes is split in the middle, that of the
    nose into nose and cheeks. Left and right are as seen in the image.
    """
    rows = torch.arange(64, dtype=torch.float64)[:, None]
    columns = torch.arange(64, dtype=torch.float64)[None] - _MIDDLE
    down, across, center = _ELLIPSE
    face = ((rows - center) / down).square() + (columns / across).square() <= 1
    step = (rows - _EYE_ROW) / (_MOUTH_ROW - _EYE_ROW)
    band = {name: face & (step >= start) & (step < end) for name, (start, end) in BANDS.items()}
    left, nose = columns < 0, columns.abs() < _NOSE
    return torch.stack(
        [
            band["forehead"],
            band["eyes"] & left,
            band["eyes"] & ~left,
            band["nose"] & left & ~nose,
            band["nose"] & nose,
            band["nose"] & ~left & ~nose,
            band["mouth"],
            band["chin"],
        ]
    )
