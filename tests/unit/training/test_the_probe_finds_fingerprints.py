from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.detect.nets.modern import ModernNet
from tests.unit.training.tiny import scan
from training import insertion, probe
from training.insertion import Look
from training.probe import sham_samples, tell_apart, texture
from training.scans import TrainingScan


def lung(name: str, seed: int) -> TrainingScan:
    """A noisy lung, large enough for pieces, with noise of the grain and strength that its look says."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((72, 144, 144)), 0.6)
    places = np.argwhere(np.ones((6, 8, 8))) * (8, 12, 12) + (12, 24, 24)
    return replace(
        scan(name, seed),
        hu=np.rint(-850 + 30 * noise / noise.std()).astype(np.int16),
        look=Look((0.6, 0.6, 0.6), 30.0, (0.6, 0.6, 0.6)),
        nodules=np.zeros((0, 4)),
        places=dict.fromkeys(("free", "pleura", "vessel", "any"), places.astype(np.int16)),
    )


def told_apart(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(probe, "SHAMS_A_SCAN", 15)
    rng = np.random.default_rng(4)
    samples = [s for k in range(3) for s in sham_samples(lung(f"person-{k}", k), rng)]
    told = tell_apart("sham or lung", "texture", samples, texture)
    assert told.made == told.untouched == 45
    assert told.low <= told.auc <= told.high
    return told.auc


def test_a_blend_without_noise_is_found_out_and_ours_is_not(monkeypatch):
    ours = told_apart(monkeypatch)
    monkeypatch.setattr(insertion, "blend", lambda hu, part, density, _: (1 - part) * hu + part * density)
    naive = told_apart(monkeypatch)
    assert naive > 0.97
    assert ours < 0.9


def test_samples_are_pieces_with_the_place_in_the_middle():
    with_nodule = replace(lung("a", 1), nodules=np.array([[30.0, 60.0, 60.0, 8.0]]))
    real, *inserted = probe.nodule_samples(with_nodule, np.random.default_rng(1))
    assert not real.made
    assert real.hu.shape == (32, 64, 64)
    assert np.array_equal(real.hu, with_nodule.hu[14:46, 28:92, 28:92])
    assert len(inserted) == probe.INSERTED_A_NODULE
    for sample in inserted:
        assert sample.made
        middle = sample.hu[15:18, 31:34, 31:34].mean()
        assert middle > sample.hu[2:5, 4:8, 4:8].mean() + 90


def test_features_of_stage_1_have_a_number_a_channel():
    sample = next(sham_samples(lung("a", 1), np.random.default_rng(1)))
    assert probe.Deep(ModernNet((4, 4, 8, 8, 8), 8).eval())(sample).shape == (8,)


def test_one_scan_is_not_enough():
    samples = list(sham_samples(lung("a", 1), np.random.default_rng(1)))[:6]
    with pytest.raises(ValueError, match="Two scans"):
        tell_apart("sham or lung", "texture", samples, texture)
