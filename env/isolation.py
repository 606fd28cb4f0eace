"""etpo isolation

Tries every isolation tier on this host and says which of them stand and why the others do not.
docs/execution.md says what each tier is made of and what it does not stop.
"""

import os
import platform

from env import command_line
from env.execution.tiers import CHOICES, TIERS, UNSAFE, IsolationError, choose, probe, remedy

__all__ = ["CHOICES", "TIERS", "UNSAFE", "IsolationError", "choose", "main", "probe"]


def main() -> int:
    """Prints a line for each tier; returns 0 when at least one stands."""
    print(f"{platform.system()} {platform.release()} {platform.machine()}, user {os.geteuid()}")
    reasons = {tier: probe(tier) for tier in TIERS}
    for tier, reason in reasons.items():
        print(f"  {tier:9} {f'no: {reason}' if reason else 'yes'}")
    best = next((tier for tier, reason in reasons.items() if not reason), None)
    if best is None:
        print(f"No tier stands here. {remedy(reasons)}")
        return 1
    print(f"--isolation=auto uses {best}.")
    return 0


if __name__ == "__main__":
    command_line.run(main)
