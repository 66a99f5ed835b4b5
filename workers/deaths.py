"""What is said of a process that was killed."""

from __future__ import annotations

import signal

from storage.job_moves import Death


def death_of(who: str, number: int, *, after_step: int | None, out_of_memory: bool | None) -> Death:
    """How a process died of a signal.

    out_of_memory: whether the kernel has killed somebody for that at the time; None where it doesn't say.
    """
    if number != signal.SIGKILL:
        return Death(f"{who} was killed by {_name(number)}", after_step)
    if out_of_memory:
        return Death(f"The kernel killed {who[0].lower()}{who[1:]} for lack of memory", after_step, out_of_memory=True)
    if out_of_memory is None:
        likely = "most likely for lack of memory, which can't be told on this machine"
        return Death(f"{who} was killed by SIGKILL ({likely})", after_step)
    return Death(f"{who} was killed by SIGKILL (by somebody, not for lack of memory)", after_step, from_outside=True)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
