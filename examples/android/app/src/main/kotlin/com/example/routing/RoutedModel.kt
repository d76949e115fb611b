package com.example.routing

/**
 * The result of an image.
 *
 * @property path the width that each gate took.
 * @property usedThreshold whether the given threshold had a part in it.
 */
class Prediction(val output: FloatArray, val path: IntArray, val usedThreshold: Boolean)

/** A network that chooses a path for each image. */
interface RoutedModel {
    /**
     * Runs an image.
     *
     * @param image as `ImageTensor` makes it.
     * @param maxWidth the largest width that may run.
     * @param threshold an image goes on to the next step where its confidence is at most this
     *   number, 0 to 1. `null` stands for the thresholds of the export. Files that route by their
     *   gates ignore it.
     */
    fun classify(image: Any, maxWidth: Int, threshold: Float?): Prediction
}

/** A file of the layouts "shared" and "fast", which routes in its graph. */
class GraphModel(private val file: RoutedFile, private val signatures: Signatures) : RoutedModel {
    override fun classify(image: Any, maxWidth: Int, threshold: Float?): Prediction {
        val thresholds = if (threshold == null) null else thresholdsWithin(maxWidth, threshold)
        if (thresholds != null) return tuned(image, thresholds)
        return if (maxWidth >= file.routes.last()) free(image) else bounded(image, maxWidth)
    }

    private fun free(image: Any): Prediction {
        val results = signatures.run("serving_default", mapOf("image" to image))
        return Prediction(floats(results, "output"), ints(results, "path"), false)
    }

    private fun bounded(image: Any, maxWidth: Int): Prediction {
        val min = IntArray(file.numGates)
        val max = IntArray(file.numGates) { maxWidth }
        val inputs = mapOf("image" to image, "min_width" to min, "max_width" to max)
        val results = signatures.run("bounded", inputs)
        return Prediction(floats(results, "output"), ints(results, "path"), false)
    }

    private fun tuned(image: Any, thresholds: FloatArray): Prediction {
        val inputs = mapOf("image" to image, "thresholds" to thresholds)
        val results = signatures.run("tuned", inputs)
        return Prediction(floats(results, "output"), ints(results, "path"), true)
    }

    /**
     * Returns thresholds with which "tuned" ends at a width, or null where only "bounded" does.
     *
     * "tuned" has no bounds, but no image goes on at a threshold of 0.
     */
    private fun thresholdsWithin(maxWidth: Int, threshold: Float): FloatArray? {
        val within = file.steps.count { it <= maxWidth }
        val gateStarts = file.routing == "gate+confidence" && maxWidth < file.routes.last()
        if (within < 2 || gateStarts) return null
        return FloatArray(file.steps.size - 1) { if (it < within - 1) threshold else 0f }
    }
}
