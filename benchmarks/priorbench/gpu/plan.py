"""The checks in the order in which they run: what is right first, then what is fast. Imports no torch."""

from __future__ import annotations

from priorbench.gpu.check import Check

CHECKS = (Check("peaks", "speed_limits", "speed", 8, "limits of the card: matrix products, memory, copies"),)
