"""What a series must be like to be analysed: the values of ``[selection]`` in the settings file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SelectionLimits:
    """Limits and weights of series selection and volume assembly.

    Each attribute is the key of the same name in ``[selection]``, which also says what it means.
    """

    max_thickness_mm: float = 3.0
    max_spacing_mm: float = 3.0
    warn_thickness_mm: float = 2.5
    max_pixel_mm: float = 1.25
    warn_pixel_mm: float = 1.0
    min_rows: int = 256
    max_rows: int = 4096
    min_slices: int = 40
    max_slices: int = 1500
    max_instances: int = 5000
    min_coverage_mm: float = 120.0
    warn_coverage_mm: float = 200.0
    max_axial_angle_deg: float = 20.0
    ignore_tilt_deg: float = 0.5
    max_tilt_deg: float = 30.0
    max_filled_slices: int = 2
    min_lung_l: float = 1.5
    max_lung_l: float = 12.0
    min_age_years: int = 18
    skip_patient_ids: tuple[str, ...] = ()
    weight_thin: float = 40.0
    weight_kernel: float = 25.0
    weight_coverage: float = 15.0
    weight_no_contrast: float = 10.0
    weight_text: float = 5.0
    weight_isotropy: float = 5.0
