"""Programs: training, evaluation, export, benchmarks; installed as `keras_dsnet_recipes`."""
