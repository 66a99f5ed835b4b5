"""What the training process tells its supervisor by the way it ends."""

#: The job's end is recorded: it succeeded, or failed with a reason.
RECORDED = 0
#: It stopped on request, with the job unfinished.
INTERRUPTED = 75
#: PostgreSQL was away for too long, with the job unfinished.
DATABASE_AWAY = 74
#: Its attempt is no longer the running one; nothing is left to do.
STALE = 76
