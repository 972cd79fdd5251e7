import subprocess
import sys

from tiny import ROOT, environment


def test_eight_devices_give_the_numbers_of_one():
    program = [sys.executable, str(ROOT / "tests" / "devices_program.py"), str(ROOT)]
    eight = environment(XLA_FLAGS="--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
    done = subprocess.run(program, env=eight, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "eight devices agree with one", done.stderr[-3000:]
