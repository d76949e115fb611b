"""Programs around Dynamic Slimmable Networks: training, evaluation, export, benchmarks."""
