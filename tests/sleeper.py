"""A module that a test's child runs: it says that it is there, then sleeps."""

import time

if __name__ == "__main__":
    print("ready", flush=True)
    time.sleep(60)
