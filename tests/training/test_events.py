"""TensorBoard's files, read by its format: records of a length, its checksum, an Event, its
checksum."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tiny import ROOT, environment

from diffusion_jax.training.events import Events


def masked(data):
    """TFRecord's checksum: CRC-32C (RFC 3720), turned by 15 bits, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (crc & 1) * 0x82F63B78
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    file = io.BytesIO(path.read_bytes())
    while length := file.read(8):
        assert struct.unpack("<I", file.read(4))[0] == masked(length)
        data = file.read(struct.unpack("<Q", length)[0])
        assert struct.unpack("<I", file.read(4))[0] == masked(data)
        yield Event.FromString(data)


def test_points_and_pictures_are_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    with Events(tmp_path / "tensorboard") as events:
        events.scalar("loss", 0.25, 7)
        events.image("samples", picture, 8)
    (path,) = (tmp_path / "tensorboard").glob("*tfevents*")
    version, scalar, image = records(path)
    assert version.file_version == "brain.Event:2"
    assert (scalar.step, scalar.summary.value[0].tag, scalar.summary.value[0].simple_value) == (
        7,
        "loss",
        0.25,
    )
    assert (image.step, image.summary.value[0].tag) == (8, "samples")
    np.testing.assert_array_equal(
        Image.open(io.BytesIO(image.summary.value[0].image.encoded_image_string)), picture
    )


def test_a_run_that_goes_on_takes_back_what_lies_beyond_and_an_evaluation_takes_back_nothing(
    tmp_path,
):
    for takes_back in (None, 5):
        with Events(tmp_path, takes_back):
            pass
    first, second = sorted(tmp_path.glob("*tfevents*"))
    starts = lambda path: [
        event.step for event in records(path) if event.session_log.status == SessionLog.START
    ]
    assert starts(first) == [] and starts(second) == [5]


def test_torch_is_not_imported_for_it(tmp_path):
    """A package in torch's place, which is imported sooner."""
    (tmp_path / "torch.py").write_text("here = True")
    program = (
        "import sys, diffusion_jax.commands.train; assert 'torch' not in sys.modules; "
        "import torch; assert torch.here"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        env=environment(PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT)))),
        check=True,
        timeout=100,
    )
