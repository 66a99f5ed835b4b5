from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from storage.processes import start_child
from workers.shared_page import SharedPage, page_of_watcher

# What a training does: it finds the page, tells a step, and waits until it must stop.
TRAINING = """
import time
from workers.shared_page import page_of_watcher
page = page_of_watcher()
page.step = 41
print(page.is_over(), flush=True)
while not page.is_over():
    time.sleep(0.01)
page.step = 42
print("over", flush=True)
time.sleep(600)
"""


def test_a_training_is_told_when_it_must_stop_and_its_last_step_is_known_after_its_death() -> None:
    page = SharedPage.new()
    page.until = time.monotonic() + 3600
    environment = {**os.environ, **page.environment}
    training = start_child([sys.executable, "-c", TRAINING], env=environment, output=subprocess.PIPE)
    assert training.stdout is not None
    with training.stdout as said:
        assert said.readline() == b"False\n"
        assert page.step == 41

        page.until = time.monotonic()
        assert said.readline() == b"over\n"
    os.kill(training.pid, signal.SIGKILL)
    training.wait()

    assert page.step == 42
    page.close()


def test_a_training_that_nobody_watches_is_never_over() -> None:
    page_of_watcher.cache_clear()

    page = page_of_watcher()

    assert not page.is_over()
    assert page is page_of_watcher()
    assert page.step == 0
