import tensorflow as tf
from tiny_detector import make_detector, scenes

from keras_dsnet.detection import evaluate_detection
from keras_dsnet.detection.detection_trainer import DetectionTrainer
from keras_dsnet.training import L2SGD


def make_trainer(eagerly=False, rate=0.02, **options):
    trainer = DetectionTrainer(make_detector(), **options)
    trainer.compile(L2SGD(rate, weight_decay=5e-4), run_eagerly=eagerly)
    return trainer


def batches(count=64, size=16, seed=0):
    return tf.data.Dataset.from_tensor_slices(scenes(count, seed)).batch(size).repeat()


def test_small_training_finds_the_squares_at_every_width():
    trainer = make_trainer(num_random=1, rate=0.03)
    before = trainer.evaluate(*scenes(32, 1), verbose=0, return_dict=True)
    trainer.fit(batches(256, 32), steps_per_epoch=150, verbose=0)
    after = trainer.evaluate(*scenes(32, 1), verbose=0, return_dict=True)
    print(before, after)
    rows = evaluate_detection(trainer.model, [scenes(32, 1)], metric="voc")
    print([row["map"] for row in rows])
    assert all(row["map"] > 0.5 for row in rows)
