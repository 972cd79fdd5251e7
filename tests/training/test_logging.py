"""The records of a run: their clock, and that no line is lost in silence."""

import contextlib
import os
import time

import pytest
from tensorboardX.record_writer import RecordWriter

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import writing
from diffusion_jax.training.logging import RunLog, read_metrics

NO_SPACE = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without space"
)


def test_the_share_of_time_outside_of_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    log = RunLog(tmp_path, 0, 8, 16)
    for _ in range(2):
        now[0] += 1.0
        with log.in_step():
            now[0] += 3.0
    log.write_training(2, {"loss": 1.0}, 1e-3)
    log.close()
    line = read_metrics(tmp_path)[0]
    assert line["outside_step"] == 0.25 and line["images_per_second"] == 4.0  # 2 x 16 images in 8 s


@NO_SPACE
@pytest.mark.parametrize("name", ["metrics", "text", "events"])
def test_no_line_of_the_log_is_lost_in_silence(tmp_path, name):
    log = RunLog(tmp_path, 0, 8, 16)
    holder, attribute = (log.events, "file") if name == "events" else (log, name)
    getattr(holder, attribute).close()
    full = RecordWriter("/dev/full") if name == "events" else open("/dev/full", "a", buffering=1)  # noqa: SIM115
    setattr(holder, attribute, full)

    @writing(tmp_path)
    def write():
        log.write(1, {"loss": 1.0})
        log.say("a line")
        log.flush()

    with pytest.raises(
        UserError, match="cannot be written: No space left on device; the last checkpoint is whole"
    ) as error:
        write()
    assert "\n" not in str(error.value)
    log.close()
    with contextlib.suppress(OSError):
        full.close()
