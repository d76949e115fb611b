package com.example.routing

import android.content.Context
import android.graphics.Bitmap
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

/** The probabilities of an image, the width that each gate took, and how long it ran. */
class Classification(val probabilities: FloatArray, val path: IntArray, val milliseconds: Double)

/**
 * A routed network of the layouts "shared" and "fast", for an app that needs no more than this.
 *
 * It takes one image at a time, from any thread but the main one. Close it when done. It needs
 * CentreCrop.kt, RoutedFile.kt, Pixels.kt and Memory.kt, and is not used by the rest of the app.
 *
 * @param threads of the interpreter; see "Thread count" in docs/android.md.
 * @param cropFraction the share of the image's short side that the network sees; null for that of
 *   the file.
 * @throws IllegalArgumentException if the file does not fit.
 */
class RoutedClassifier(
    context: Context,
    asset: String,
    threads: Int = 1,
    cropFraction: Float? = null,
) : AutoCloseable {
    private val content = mapAsset(context, asset)
    private val file = RoutedFile.read(content)
    private val interpreter = Interpreter(
        content,
        Interpreter.Options().setNumThreads(threads).setUseXNNPACK(true),
    )
    private val imageTensor = interpreter.getInputTensorFromSignature("image", "serving_default")
    private val outputTensor = interpreter.getOutputTensorFromSignature("output", "serving_default")
    private val pathTensor = interpreter.getOutputTensorFromSignature("path", "serving_default")
    private val height = imageTensor.shape()[1]
    private val width = imageTensor.shape()[2]
    private val numClasses = outputTensor.shape()[1]
    val numGates = pathTensor.shape()[0]
    private val raw = imageTensor.dataType() == DataType.UINT8
    private val numValues = height * width * 3

    // Made once, for every image.
    private val image = newBuffer(numValues * (if (raw) 1 else 4))
    private val minWidth = IntArray(numGates)
    private val maxWidth = IntArray(numGates)
    private val output = Array(1) { FloatArray(numClasses) }
    private val path = IntArray(numGates)
    private val free = mapOf<String, Any>("image" to image)
    private val bounded =
        mapOf<String, Any>("image" to image, "min_width" to minWidth, "max_width" to maxWidth)
    private val results = mapOf<String, Any>("output" to output, "path" to path)

    // Only a file that routes by confidence has the signature "tuned".
    val numThresholds =
        if ("tuned" !in interpreter.signatureKeys) 0
        else interpreter.getInputTensorFromSignature("thresholds", "tuned").shape()[0]
    private val thresholds = FloatArray(numThresholds)
    private val confidence = FloatArray(1)
    private val tuned = mapOf<String, Any>("image" to image, "thresholds" to thresholds)
    private val tunedResults =
        mapOf<String, Any>("output" to output, "path" to path, "confidence" to confidence)

    private val crop = CentreCrop(width, height, cropFraction ?: file.cropFraction)
    private val bytes = ByteArray(if (raw) numValues else 0)
    private val floats = FloatArray(if (raw) 0 else numValues)
    private val normalised = Array(3) { c ->
        FloatArray(256) { (it * file.scale - file.mean[c]) / file.std[c] }
    }

    /** Lets the file choose: by its gates, or by confidence with the thresholds of the export. */
    @Synchronized
    fun classify(bitmap: Bitmap): Classification {
        load(bitmap)
        interpreter.runSignature(free, results, "serving_default")
        return result()
    }

    /** Lets each gate choose from `min` to `max`, a width per gate; equal bounds force it. */
    @Synchronized
    fun classify(bitmap: Bitmap, min: IntArray, max: IntArray): Classification {
        require(min.size == numGates && max.size == numGates) { "A bound has $numGates widths" }
        min.copyInto(minWidth)
        max.copyInto(maxWidth)
        load(bitmap)
        interpreter.runSignature(bounded, results, "bounded")
        return result()
    }

    /** Routes by confidence with other thresholds, one for each step except the last. */
    @Synchronized
    fun classify(bitmap: Bitmap, limits: FloatArray): Classification {
        require(numThresholds > 0) { "The file does not route by confidence" }
        require(limits.size == numThresholds) { "The file has $numThresholds thresholds" }
        limits.copyInto(thresholds)
        load(bitmap)
        interpreter.runSignature(tuned, tunedResults, "tuned")
        return result()
    }

    /** Lets every gate choose up to the width `max`. */
    fun classify(bitmap: Bitmap, max: Int): Classification =
        classify(bitmap, IntArray(numGates), IntArray(numGates) { max })

    @Synchronized
    override fun close() = interpreter.close()

    private fun result() = Classification(
        output[0].copyOf(),
        path.copyOf(),
        interpreter.lastNativeInferenceDurationNanoseconds / 1e6,
    )

    /** Writes the centre of a bitmap into the buffer `image`. */
    private fun load(bitmap: Bitmap) {
        val pixels = crop.pixelsOf(bitmap)
        image.rewind()
        if (raw) {
            for (i in 0 until numValues) {
                bytes[i] = valueOf(pixels[i / 3], i % 3).toByte()
            }
            image.put(bytes)
        } else {
            for (i in 0 until numValues) {
                floats[i] = normalised[i % 3][valueOf(pixels[i / 3], i % 3)]
            }
            image.asFloatBuffer().put(floats)
        }
    }
}
