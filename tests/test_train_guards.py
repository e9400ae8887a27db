"""What refuses or ends work: losses that jump, signals, lost launchers."""

import json

from videomaker.train.config import GuardConfig
from videomaker.train.guards import LossGuard


def test_the_guard_objects_to_nan_and_spikes_only():
    guard = LossGuard(GuardConfig(spike_factor=3.0, spike_window=4, max_skipped=2))
    assert guard.objection(float("nan")) and guard.objection(float("inf"))
    assert not guard.objection(100.0)  # nothing known yet
    for loss in (1.0, 2.0, 1.0, 1.0):
        guard.accept(loss)
    assert not guard.objection(5.9)
    assert "over 3 times" in guard.objection(6.1)
    again = LossGuard(guard.settings)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again.state_dict() == guard.state_dict()
    guard.reject()
    assert not guard.exhausted
    guard.reject()
    assert guard.exhausted
