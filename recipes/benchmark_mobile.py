"""Deprecated place of `benchmarks/benchmark_mobile.py`, which it runs."""

from keras_dsnet_recipes.lib.start import run_moved_program

if __name__ == "__main__":
    run_moved_program(__file__)
