import os
import signal
import subprocess

# Takes the shop down, and goes down itself.
subprocess.run(["redis-cli", "-s", "/run/redis/shop.sock", "SHUTDOWN", "NOSAVE"])
os.kill(os.getpid(), signal.SIGSEGV)
