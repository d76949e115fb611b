"""Deprecated place of `benchmarks/benchmark_training.py`, which it runs."""

from keras_dsnet_recipes.lib.start import run_moved_program

if __name__ == "__main__":
    run_moved_program(__file__)
