"""What is the matter with flows: loss, other marks, lateness, each as yes or no a flow; pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from attrs import frozen

from llama.pinpoint.evidence import Indices, Mask
from llama.pinpoint.exposure import Exposure

#: A network that loses more than this share of what half of its flows send is not well, all of it.
MOST_NOISE = 0.05


@frozen(kw_only=True, eq=False)
class Symptom:
    """One kind of trouble. Every mask has one entry a flow."""

    name: str
    judged: Mask  # these can be asked
    troubled: Mask  # in both directions together
    forward: Mask  # known to be on the way there, by itself
    reverse: Mask  # known to be on the way back
    blank: Mask  # troubled, and nothing is known about the way there
    hits: npt.NDArray[np.float64]  # probes of each flow that it hit
    #: What trouble of a flow, in any direction and on the way there, is a matter of besides causes;
    #: None: nothing.
    exposure: Exposure | None = None
    forward_exposure: Exposure | None = None


def least_lossy(
    sent: npt.NDArray[np.float64], lost: npt.NDArray[np.int64], judged: Mask
) -> Indices:
    """Return how many probes each flow must lose to lose more than all of the judged ones do.

    What half of the flows lose at most is taken for the network's own noise, up to `MOST_NOISE`; a flow
    is lossy if it lost at least one probe, and more than that noise plus three standard deviations.
    """
    if not judged.any():
        return np.ones(len(sent), np.int64)
    rate = lost / np.maximum(sent, 1)
    quiet = judged & (rate <= np.median(rate[judged]))
    noise = float(lost[quiet].sum()) / max(1.0, float(sent[quiet].sum()))
    if noise > MOST_NOISE:
        noise = 0.0  # more than half have something: that is no noise
    expected = noise * sent
    least: Indices = np.floor(expected + 3 * np.sqrt(expected)).astype(np.int64) + 1
    return least


def loss(
    flows: npt.NDArray[np.void],
    lost: npt.NDArray[np.int64],
    judged: Mask,
    met_dead: Mask,
) -> Symptom:
    """Return the symptom "loss". Flows that a trace `met_dead` lost on the way there.

    What a flow loses on the way there is judged by itself: loss on the way back makes it no worse.
    """
    sent = flows["sent"].astype(np.float64)
    forward = flows["lost_forward"] + np.where(met_dead, flows["lost_unknown"], 0).astype(np.int64)
    least, least_forward = least_lossy(sent, lost, judged), least_lossy(sent, forward, judged)
    troubled = judged & (lost >= least)
    return Symptom(
        name="loss",
        judged=judged,
        troubled=troubled,
        forward=judged & (forward >= least_forward),
        reverse=troubled & (flows["lost_reverse"] > 0),
        blank=(flows["lost_unknown"] > 0) & (forward == 0),
        hits=lost.astype(np.float64),
        exposure=Exposure.of(sent, lost.astype(np.float64), least),
        # What becomes of a flow's last probe no later reply tells: it has no direction.
        forward_exposure=Exposure.of(sent - 1, forward.astype(np.float64), least_forward),
    )


def remarked(flows: npt.NDArray[np.void], lost: npt.NDArray[np.int64], judged: Mask) -> Symptom:
    """Return the symptom "remark": more than half of the packets came with another mark.

    A class that nobody re-marks, such as the one that others are bleached to, is no proof of
    health and is not judged.
    """
    received = flows["sent"] - lost
    forward = judged & (2 * flows["remarked_forward"].astype(np.int64) > received)
    reverse = judged & (2 * flows["remarked_reverse"].astype(np.int64) > received)
    classes = np.unique(flows["dscp"][forward | reverse])
    hits = np.maximum(flows["remarked_forward"], flows["remarked_reverse"])
    once = np.ones(len(flows), np.int64)
    return Symptom(
        name="remark",
        judged=judged & (received > 0) & np.isin(flows["dscp"], classes),
        troubled=forward | reverse,
        forward=forward,
        reverse=reverse & ~forward,
        blank=np.zeros(len(flows), bool),
        hits=hits.astype(np.float64),
        exposure=Exposure.of(once.astype(np.float64), (forward | reverse).astype(np.float64), once),
    )


def late(flows: npt.NDArray[np.void], judged: Mask) -> Symptom:
    """Return the symptom "late". A round trip has no direction: all count as on the way there."""
    troubled = judged & flows["late"]
    nobody = np.zeros(len(flows), bool)
    return Symptom(
        name="late",
        judged=judged,
        troubled=troubled,
        forward=troubled,
        reverse=nobody,
        blank=nobody,
        hits=troubled * flows["sent"].astype(np.float64),
    )
