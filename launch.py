"""Start runs and sweeps: `python launch.py --help`. `unlearn run` is the same where the package is installed."""

from unlearn.cli.launch import launch

if __name__ == "__main__":
    launch()
