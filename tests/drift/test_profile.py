"""The profile survives the way to disk and back; what is damaged, foreign or too small is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slipway_jobs.drift.calibration import calibrate
from slipway_jobs.drift.errors import ProfileError
from slipway_jobs.drift.features import Features, Vocabulary
from slipway_jobs.drift.profile import (
    ARRAYS,
    DOCUMENT,
    ProfileBuilder,
    ReferenceProfile,
    half_of,
    read_profile,
)

from .conftest import TOKENIZER, Maker


def test_there_and_back(profile: ReferenceProfile, tmp_path: Path) -> None:
    profile.write(tmp_path)
    again = read_profile(tmp_path, TOKENIZER)
    assert again.digest == profile.digest
    assert again.signals == profile.signals
    assert {name: s.state() for name, s in again.layout.items()} == {n: s.state() for n, s in profile.layout.items()}
    np.testing.assert_array_equal(again.embeddings, profile.embeddings)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DOCUMENT, ARRAYS]


def test_the_order_of_documents_does_not_matter(vocabulary: Vocabulary, record: Maker) -> None:
    records = [(f"d{number}", record()) for number in range(150)]
    digests = set()
    for order in (records, records[::-1], records + records[:20]):
        builder = ProfileBuilder(TOKENIZER, vocabulary)
        for identity, features in order:
            builder.add(identity, features)
        digests.add(json.dumps({name: sketch.state() for name, sketch in builder.build().layout.items()}))
    assert len(digests) == 1


def test_another_tokenizer_is_refused_by_name(profile: ReferenceProfile, tmp_path: Path) -> None:
    profile.write(tmp_path)
    with pytest.raises(ProfileError, match=r"sha256:one.*sha256:two"):
        read_profile(tmp_path, "sha256:two")


def test_absent_damaged_and_future_profiles_are_refused(profile: ReferenceProfile, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"profile\.json is missing"):
        read_profile(tmp_path)
    profile.write(tmp_path)
    document = json.loads((tmp_path / DOCUMENT).read_text())
    (tmp_path / DOCUMENT).write_text(json.dumps(document | {"version": 2}))
    with pytest.raises(ProfileError, match="version 2"):
        read_profile(tmp_path)
    (tmp_path / DOCUMENT).write_text("{")
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(tmp_path)
    (tmp_path / DOCUMENT).write_text(json.dumps({key: document[key] for key in ("version", "arrays")}))
    with pytest.raises(ProfileError, match="damaged"):
        read_profile(tmp_path)
    (tmp_path / DOCUMENT).write_text(json.dumps(document))
    (tmp_path / ARRAYS).write_bytes((tmp_path / ARRAYS).read_bytes()[:-1])
    with pytest.raises(ProfileError, match="is not the file"):
        read_profile(tmp_path)


def test_too_few_records_are_no_reference(vocabulary: Vocabulary, record: Maker) -> None:
    builder = ProfileBuilder(TOKENIZER, vocabulary)
    for number in range(99):
        builder.add(str(number), record())
    with pytest.raises(ProfileError, match="at least 100 records, not 99"):
        builder.build()
    empty = ProfileBuilder(TOKENIZER, vocabulary)
    for number in range(200):
        empty.add(str(number), Features())
    with pytest.raises(ProfileError, match="no feature is present"):
        empty.build()


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ({"input.colour": "chiSquare"}, "is no signal"),
        ({"input.tokens": "studentT"}, "cannot judge it"),
        ({"label": "wasserstein"}, "needs numbers with an order"),
        ({"input.tokenRanks": "chiSquare"}, "independent counts"),
    ],
)
def test_a_test_that_does_not_fit_is_refused(profile: ReferenceProfile, tests: dict[str, str], message: str) -> None:
    wrong = ReferenceProfile(TOKENIZER, profile.vocabulary, profile.sample, profile.seen, profile.seed, tests)
    with pytest.raises(ProfileError, match=message):
        _ = wrong.signals


def test_halves_are_halves_and_stay_so() -> None:
    halves = [half_of(f"document {number}", 1) for number in range(2000)]
    assert 900 < sum(halves) < 1100
    assert halves == [half_of(f"document {number}", 1) for number in range(2000)]


def test_calibration_is_seeded_and_gets_stricter_with_size(profile: ReferenceProfile) -> None:
    levels = {signal.name: 1e-3 for signal in profile.signals}
    small, large = calibrate(profile, 100, levels), calibrate(profile, 1000, levels)
    assert small == calibrate(profile, 100, levels)
    ranks_small, ranks_large = small["input.tokenRanks"], large["input.tokenRanks"]
    assert ranks_small.effect_threshold > ranks_large.effect_threshold
    # A threshold carried over to another size is about the one that is calibrated there.
    carried = ranks_small.effect_threshold * ((1 / 1000 + 1 / 2000) / (1 / 100 + 1 / 2000)) ** 0.5
    assert carried == pytest.approx(ranks_large.effect_threshold, rel=0.3)
    with pytest.raises(ValueError, match="at least 2 records"):
        calibrate(profile, 1, levels)
